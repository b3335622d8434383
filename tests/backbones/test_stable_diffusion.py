from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.attention import cross_attention_sides
from partcraft_lit.backbones.latent_diffusion import choose_attention_layers
from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.backbones.stable_diffusion import StableDiffusion
from partcraft_lit.backbones.weights import weights_hash
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Backbone, Conditioning, PartToken


def as_backbone(backbone: StableDiffusion) -> Backbone:
    """For the type checker: the class fits the protocol."""
    return backbone


@pytest.fixture
def pixels():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_facts_about_the_model(tiny_backbone):
    assert tiny_backbone.vae_scale_factor == 2
    assert tiny_backbone.latent_channels == 4
    assert tiny_backbone.token_widths == (32,)
    assert tiny_backbone.attention_size == 16
    assert tiny_backbone.attention_layers == (
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2",
    )


def test_everything_is_frozen_and_stays_in_evaluation_mode(fresh_backbone):
    assert not any(parameter.requires_grad for parameter in fresh_backbone.parameters())
    assert not any(module.training for module in fresh_backbone.modules())
    fresh_backbone.train()
    assert fresh_backbone.training
    assert all(module.training for module in fresh_backbone.unet.modules())
    frozen = (*fresh_backbone.vae.modules(), *fresh_backbone.text_encoders[0].modules())
    assert not any(module.training for module in frozen)
    fresh_backbone.eval()
    assert not any(module.training for module in fresh_backbone.modules())


def test_posterior_equals_the_vae_s_in_the_unet_s_scale(fresh_backbone, pixels):
    mean, std = fresh_backbone.encode_images(pixels)
    posterior = fresh_backbone.vae.encode(pixels).latent_dist
    assert mean.shape == (2, 4, 16, 16)
    assert_close(mean, posterior.mean * 0.18215)
    assert_close(std, posterior.std * 0.18215)
    assert not mean.requires_grad


def test_shift_and_scale_are_undone_by_decoding(make_components, pixels):
    components = make_components()
    components["vae"].register_to_config(scaling_factor=0.5, shift_factor=0.25)
    backbone = StableDiffusion(name="shifted", **components, resolution=32)
    mean, _ = backbone.encode_images(pixels)
    posterior = backbone.vae.encode(pixels).latent_dist
    assert_close(mean, (posterior.mean - 0.25) * 0.5)
    assert_close(backbone.decode_latents(mean), backbone.vae.decode(posterior.mean).sample)


def test_pictures_need_not_be_square(tiny_backbone):
    mean, std = tiny_backbone.encode_images(torch.zeros(1, 3, 24, 40))
    assert mean.shape == std.shape == (1, 4, 12, 20)
    assert tiny_backbone.decode_latents(mean).shape == (1, 3, 24, 40)
    with pytest.raises(ValueError, match="multiples of 2"):
        tiny_backbone.encode_images(torch.zeros(1, 3, 24, 41))


def test_prompts_and_prediction_equal_the_pipeline_s(tiny_backbone, tiny_tokenizer, make_tokens):
    tokens = make_tokens([["a photo of a bird"]])
    conditioning = tiny_backbone.encode_prompts(tokens, None)
    ids = tiny_tokenizer(["a photo of a bird"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected = tiny_backbone.text_encoders[0](ids)[0]
    assert torch.equal(conditioning.encoder_hidden_states, expected)
    assert conditioning.pooled_prompt_embeds is None
    latents, timesteps = torch.randn(1, 4, 16, 16), torch.tensor([321])
    prediction = tiny_backbone.denoise(latents, timesteps, conditioning)
    assert torch.equal(prediction, tiny_backbone.unet(latents, timesteps, expected).sample)


def test_a_training_step_reaches_adapter_and_part_vectors_and_leaves_the_rest_to_the_bit(fresh_backbone, make_tokens):
    before = copy.deepcopy(fresh_backbone.state_dict())
    vectors = torch.randn(1, 1, 32, requires_grad=True)
    trained = [vectors, *add_lora(fresh_backbone.unet)]
    optimizer = torch.optim.AdamW(trained, lr=0.1)
    conditioning = fresh_backbone.encode_prompts(make_tokens([["a", PartToken(1, 2)]]), vectors)
    prediction = fresh_backbone.denoise(torch.randn(1, 4, 16, 16), torch.tensor([5]), conditioning)
    prediction.square().mean().backward()
    assert vectors.grad.abs().sum() > 0
    optimizer.step()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in fresh_backbone.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_half_precision_is_of_unet_and_text_only_and_answers_in_float32(make_components, make_tokens, pixels):
    backbone = StableDiffusion(name="half", **make_components(), resolution=32, dtype=torch.bfloat16)
    assert backbone.dtype == torch.bfloat16
    assert next(backbone.vae.parameters()).dtype == torch.float32
    conditioning = backbone.encode_prompts(make_tokens([["a", PartToken(1, 2)]]), torch.zeros(1, 1, 32))
    assert backbone.denoise(torch.randn(1, 4, 16, 16), torch.tensor([5]), conditioning).dtype == torch.float32
    add_lora(backbone.unet)
    assert backbone.dtype == torch.bfloat16, "the adapter's float32 is not the UNet's type"
    assert backbone.encode_images(pixels)[0].dtype == torch.float32


def test_the_vae_stays_out_of_autocast(tiny_backbone, pixels):
    plain = tiny_backbone.encode_images(pixels)[0]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(tiny_backbone.encode_images(pixels)[0], plain)
        assert tiny_backbone.decode_latents(plain).dtype == torch.float32


def test_scheduler_keeps_the_noise_schedule_and_never_clips(make_components):
    from diffusers import PNDMScheduler

    components = make_components(prediction_type="v_prediction")
    betas = components["scheduler"].betas
    components["scheduler"] = PNDMScheduler.from_config(components["scheduler"].config)
    scheduler = StableDiffusion(name="v", **components).noise_scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.clip_sample is False
    assert_close(scheduler.betas, betas)


def test_gradient_checkpointing_gives_the_same_gradients(fresh_backbone):
    latents, text = torch.randn(1, 4, 16, 16), torch.randn(1, 77, 32)
    grads = []
    for _ in range(2):
        hidden = text.clone().requires_grad_()
        fresh_backbone.denoise(latents, torch.tensor([9]), Conditioning(hidden)).square().mean().backward()
        grads.append(hidden.grad)
        fresh_backbone.enable_gradient_checkpointing()
    assert_close(grads[0], grads[1])


# --- which layers are read ---


def test_sd15_reads_exactly_the_five_layers_of_the_paper(sd15_unet):
    size, names = choose_attention_layers(sd15_unet, 64)
    assert size == 16
    assert names == tuple(
        f"{block}.attentions.{index}.transformer_blocks.0.attn2"
        for block, count in (("down_blocks.2", 2), ("up_blocks.1", 3))
        for index in range(count)
    )


def test_sd15_sides_are_those_of_a_real_forward(sd15_unet):
    sides, met = cross_attention_sides(sd15_unet, 64), []
    handles = [
        sd15_unet.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: met.append((name, math.isqrt(args[0].shape[1])))
        )
        for name in sides
    ]
    with torch.device("meta"):
        sd15_unet(torch.zeros(1, 4, 64, 64), torch.zeros(1), torch.zeros(1, 77, 768))
    for handle in handles:
        handle.remove()
    assert met == list(sides.items())
    assert len(met) == 16


@pytest.mark.parametrize(("latent_size", "size"), [(64, 16), (96, 24), (128, 16), (32, 16), (8, 8)])
def test_the_coarsest_of_at_least_16_is_chosen(sd15_unet, latent_size, size):
    assert choose_attention_layers(sd15_unet, latent_size)[0] == size


def test_another_attention_size_can_be_asked_for(sd15_unet, make_components):
    assert len(choose_attention_layers(sd15_unet, 64, 32)[1]) == 5
    assert choose_attention_layers(sd15_unet, 64, 8)[1] == ("mid_block.attentions.0.transformer_blocks.0.attn2",)
    with pytest.raises(UserError, match=r"attention_size=12 .*64 x 64; this model has 8, 16, 32, 64"):
        choose_attention_layers(sd15_unet, 64, 12)
    assert StableDiffusion(name="tiny", **make_components(), attention_size=8).attention_size == 8


def test_resolution(make_components):
    assert StableDiffusion(name="own", **make_components()).resolution == 32
    assert StableDiffusion(name="tall", **make_components(), resolution=64).attention_size == 16
    for wrong, nearest in ((30, 32), (2, 4), (0, 4)):
        with pytest.raises(UserError, match=rf"resolution={wrong} .*multiple of 4 .*nearest is {nearest}"):
            StableDiffusion(name="odd", **make_components(), resolution=wrong)


# --- hash ---


def test_hash_is_of_the_values_and_nothing_else(make_components):
    one = StableDiffusion(name="a", **make_components(), resolution=32)
    assert one.hash == StableDiffusion(name="b", **make_components(), resolution=64, dtype=torch.bfloat16).hash
    assert len(one.hash) == 64
    for part in ("unet", "vae", "text_encoder"):
        components = make_components()
        with torch.no_grad():
            next(components[part].parameters()).view(-1)[0] += 1e-3
        assert StableDiffusion(name="a", **components, resolution=32).hash != one.hash, part
    components = make_components()
    components["vae"].register_to_config(scaling_factor=0.2)
    assert StableDiffusion(name="a", **components, resolution=32).hash != one.hash


def test_hash_is_that_of_this_recipe():
    """Stored latents are found by it, so it must not change by accident: two numbers, spelt out."""
    import hashlib
    import struct

    module = torch.nn.Linear(1, 1)
    with torch.no_grad():
        module.weight.fill_(1.5)
        module.bias.fill_(-2.0)
    bias = hashlib.sha256(b"0/bias(1,)" + struct.pack("<f", -2.0)).digest()
    weight = hashlib.sha256(b"0/weight(1, 1)" + struct.pack("<f", 1.5)).digest()
    expected = hashlib.sha256(b"(0.5,)" + bias + weight).hexdigest()
    assert weights_hash([module], 0.5) == expected
    assert weights_hash([module.half()], 0.5) == expected


def test_settings_of_sd1_files_are_those_of_the_published_model(sd15_unet, sd15_settings):
    """Parameter counts of the published networks."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        vae = AutoencoderKL.from_config(json.loads((sd15_settings / "vae" / "config.json").read_text()))
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(sd15_settings, subfolder="text_encoder"))
    assert count(sd15_unet) == 859_520_964
    assert count(vae) == 83_653_863
    assert count(text) == 123_060_480
