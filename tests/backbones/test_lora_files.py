"""Names of layers in other tools, against diffusers' own converter and against rules written down by hand."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.testing import assert_close

from partcraft_lit.backbones.lora import add_lora, lora_layers, lora_targets, remove_lora
from partcraft_lit.backbones.lora_files import (
    from_diffusers,
    from_kohya,
    kohya_name,
    sgm_name,
    to_diffusers,
    to_kohya,
)
from partcraft_lit.backbones.model_configs import SDXL_BASE
from partcraft_lit.backbones.model_families import family_of


@pytest.fixture(scope="module")
def sdxl_unet():
    """SDXL's UNet on the meta device."""
    with torch.device("meta"):
        return UNet2DConditionModel.from_config(SDXL_BASE["unet"])


def with_lora(backbone, alpha):
    add_lora(backbone.unet, rank=2, alpha=alpha, scope="all")
    generator = torch.Generator().manual_seed(0)
    for name, parameter in backbone.unet.named_parameters():
        if ".lora_B." in name:
            parameter.data = torch.randn(parameter.shape, generator=generator)
    return backbone


@pytest.mark.parametrize(
    "layer, name",
    [  # counted by hand in the original's configuration: 3 levels of 2 layers, attention in the last two
        ("down_blocks.1.attentions.0", "input_blocks.4.1"),
        ("down_blocks.2.attentions.1", "input_blocks.8.1"),
        ("mid_block.attentions.0", "middle_block.1"),
        ("up_blocks.0.attentions.2", "output_blocks.2.1"),
        ("up_blocks.1.attentions.1", "output_blocks.4.1"),
    ],
)
def test_names_in_the_original_s_style_by_hand(sdxl_unet, layer, name):
    end = "transformer_blocks.1.attn2.to_out.0"
    assert sgm_name(f"{layer}.{end}", sdxl_unet.config) == f"{name}.{end}"


def test_every_layer_of_sdxl_comes_back_through_diffusers_converter(sdxl_unet, tiny_backbone_xl):
    """kohya's key -> diffusers' own reader -> the layer we started from; 700 keys of a LoRA on all attention."""
    from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers as convert
    from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers as rename
    from diffusers.utils.state_dict_utils import convert_unet_state_dict_to_peft as to_peft

    layers = lora_targets(sdxl_unet, "all")
    family = family_of(tiny_backbone_xl)
    tensors = {}
    for index, layer in enumerate(layers):
        key = kohya_name("unet", layer, family, sdxl_unet.config)
        assert key.startswith(("lora_unet_input_blocks_", "lora_unet_middle_block_1_", "lora_unet_output_blocks_"))
        tensors |= {f"{key}.lora_down.weight": torch.tensor([[index]]), f"{key}.lora_up.weight": torch.ones(1, 1)}
    assert len(tensors) == 2 * len(layers) == 2 * 560  # 70 transformer blocks, two attentions, four projections
    found, _ = convert(rename(tensors, sdxl_unet.config))
    found = to_peft({key.removeprefix("unet."): value for key, value in found.items()})
    down = {key.removesuffix(".lora_A.weight"): int(value) for key, value in found.items() if "lora_A" in key}
    assert down == {layer: index for index, layer in enumerate(layers)}


def test_no_other_layer_has_such_a_name(sdxl_unet):
    with pytest.raises(ValueError, match="not a layer of an attention block"):
        sgm_name("down_blocks.0.resnets.0.conv1", sdxl_unet.config)


def test_prefixes_of_text_encoders(tiny_backbone, tiny_backbone_xl):
    one, two = family_of(tiny_backbone), family_of(tiny_backbone_xl)
    layer, end = "encoder.layers.0.self_attn.q_proj", "text_model_encoder_layers_0_self_attn_q_proj"
    assert kohya_name("text_encoder", layer, one, None) == f"lora_te_{end}"
    assert kohya_name("text_encoder", f"text_model.{layer}", two, None) == f"lora_te1_{end}"
    assert kohya_name("text_encoder_2", f"text_model.{layer}", two, None) == f"lora_te2_{end}"


@pytest.mark.parametrize("alpha", [None, 7.0])
@pytest.mark.parametrize("kind", ["fresh_backbone", "fresh_backbone_xl"])
def test_alpha_is_folded_and_every_change_comes_back(request, kind, alpha):
    backbone = with_lora(request.getfixturevalue(kind), alpha)
    family, layers = family_of(backbone), lora_layers(backbone.unet)
    weights = dict(backbone.unet.named_modules())
    for name, layer in layers.items():  # what peft itself would merge
        assert_close(layer.delta().float(), weights[name].get_delta_weight("default"))
        assert layer.scale == (alpha or 2) / 2
    kohya = to_kohya({"unet": layers}, family, backbone.unet.config)
    assert all(float(value) == 2 for key, value in kohya.items() if key.endswith(".alpha"))
    for again in (
        from_diffusers(to_diffusers({"unet": layers})),
        from_kohya(kohya, {"unet": backbone.unet}, family),
    ):
        assert again.keys() == {f"unet.{name}" for name in layers}
        for name, layer in layers.items():
            assert_close(again[f"unet.{name}"].delta().float(), layer.delta().float())


def test_a_key_of_no_layer_is_an_error_and_not_passed_over(fresh_backbone):
    backbone = with_lora(fresh_backbone, None)
    tensors = to_kohya({"unet": lora_layers(backbone.unet)}, family_of(backbone), backbone.unet.config)
    wrong = {key.replace("mid_block", "middle_block"): value for key, value in tensors.items()}
    wrong = {key.replace("down_blocks_0", "down_blocks_9"): value for key, value in wrong.items()}
    with pytest.raises(ValueError, match="belong to no layer of the model"):
        from_kohya(wrong, {"unet": backbone.unet}, family_of(backbone))


def test_families_by_size(sd15_unet, sdxl_unet, tiny_backbone, tiny_backbone_xl):
    def of(backbone, unet):
        like = copy.copy(backbone)
        object.__setattr__(like, "_modules", {**backbone._modules, "unet": unet})
        return family_of(like)

    assert of(tiny_backbone, sd15_unet).architecture == "stable-diffusion-v1"
    assert of(tiny_backbone_xl, sdxl_unet).architecture == "stable-diffusion-xl-v1-base"
    assert not family_of(tiny_backbone).is_known and not family_of(tiny_backbone_xl).is_known


def test_taking_the_adapter_out_leaves_no_layers(fresh_backbone):
    backbone = with_lora(fresh_backbone, None)
    remove_lora(backbone.unet)
    assert lora_layers(backbone.unet) == {}
