"""LoRA state dicts with diffusers' keys or kohya's keys, written and read.

Files have the scale folded into the up projection and alpha equal to the rank: tools disagree on any other alpha.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from partcraft_lit.backbones.lora import LoraLayer
from partcraft_lit.backbones.model_families import Family

#: Network, by diffusers' name -> layer name -> LoRA factors.
Adapters = Mapping[str, Mapping[str, LoraLayer]]
UNET = "unet"


def encoder_names(count: int) -> tuple[str, ...]:
    """diffusers' names of the text encoders."""
    return tuple("text_encoder" if index == 0 else f"text_encoder_{index + 1}" for index in range(count))


def to_diffusers(adapters: Adapters) -> dict[str, Tensor]:
    """``unet.<layer>.lora_A.weight`` (down) and ``lora_B`` (up), as ``load_lora_weights`` reads them."""
    tensors = {}
    for network, layers in adapters.items():
        for name, layer in layers.items():
            folded = layer.folded()
            tensors[f"{network}.{name}.lora_A.weight"] = folded.down
            tensors[f"{network}.{name}.lora_B.weight"] = folded.up
    return tensors


def to_kohya(adapters: Adapters, family: Family, unet_config: Any) -> dict[str, Tensor]:
    """``lora_unet_<layer with _>.lora_down.weight``, ``.lora_up.weight`` and ``.alpha``, as A1111 and ComfyUI read."""
    tensors = {}
    for network, layers in adapters.items():
        for name, layer in layers.items():
            key, folded = kohya_name(network, name, family, unet_config), layer.folded()
            tensors[f"{key}.lora_down.weight"] = folded.down
            tensors[f"{key}.lora_up.weight"] = folded.up
            tensors[f"{key}.alpha"] = torch.tensor(float(folded.rank))
    return tensors


def kohya_name(network: str, layer: str, family: Family, unet_config: Any) -> str:
    """Name of a layer in kohya's files.

    Args:
        network: "unet", "text_encoder" or "text_encoder_2".
        layer: module name inside it.
        family: of the model.
        unet_config: of the UNet, for "sgm" names.
    """
    if network == UNET:
        layer = sgm_name(layer, unet_config) if family.unet_names == "sgm" else layer
        return f"lora_unet_{layer.replace('.', '_')}"
    prefix = family.encoder_prefixes[encoder_names(len(family.encoder_prefixes)).index(network)]
    layer = layer if layer.startswith("text_model.") else f"text_model.{layer}"  # transformers 5.6 dropped this level
    return f"{prefix}_{layer.replace('.', '_')}"


def sgm_name(layer: str, unet_config: Any) -> str:
    """Name of a layer of an attention block in the original UNet.

    Blocks are numbered across levels: ``input_blocks`` begin with the first convolution and have one downsampling per
    level; a level of ``output_blocks`` has one layer more. In a block, 0 is the convolution and 1 the attention.

    Raises:
        ValueError: for a layer outside the attention blocks, which no adapter here changes.
    """
    per_level = int(unet_config.layers_per_block) + 1
    words = layer.split(".")
    if words[:2] == ["mid_block", "attentions"]:
        return ".".join(["middle_block", "1", *words[3:]])
    if len(words) > 4 and words[0] in ("down_blocks", "up_blocks") and words[2] == "attentions":
        index = int(words[1]) * per_level + int(words[3])
        block = f"input_blocks.{index + 1}" if words[0] == "down_blocks" else f"output_blocks.{index}"
        return ".".join([block, "1", *words[4:]])
    raise ValueError(f"{layer!r} is not a layer of an attention block.")


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """LoRA factors of a file with diffusers' keys, by network and layer name."""
    ends = (".lora_A.weight", ".lora_B.weight", "")
    return _layers(tensors, ends, {key.removesuffix(ends[0]): key.removesuffix(ends[0]) for key in tensors})


def from_kohya(
    tensors: Mapping[str, Tensor], networks: Mapping[str, nn.Module], family: Family
) -> dict[str, LoraLayer]:
    """LoRA factors of a file with kohya's keys, matched to the model's layers as other tools do.

    Raises:
        ValueError: for a key without a layer, which tools skip silently.
    """
    config = networks[UNET].config
    names = {}
    for network, module in networks.items():
        for name in _linear_names(module):
            if network != UNET or ".attentions." in name:
                names[kohya_name(network, name, family, config)] = f"{network}.{name}"
    return _layers(tensors, (".lora_down.weight", ".lora_up.weight", ".alpha"), names)


def _layers(
    tensors: Mapping[str, Tensor], ends: tuple[str, str, str], names: Mapping[str, str]
) -> dict[str, LoraLayer]:
    down, up, alpha = ends
    layers, left = {}, set(tensors)
    for key in [key.removesuffix(down) for key in tensors if key.endswith(down)]:
        if key not in names or key + up not in tensors:
            continue
        rank = len(tensors[key + down])
        scale = float(tensors[key + alpha]) / rank if alpha and key + alpha in tensors else 1.0
        layers[names[key]] = LoraLayer(tensors[key + down].float(), tensors[key + up].float(), scale)
        left -= {key + end for end in ends if end}
    if left:
        raise ValueError(f"{len(left)} keys belong to no layer of the model, for instance {min(left)!r}.")
    return layers


def _linear_names(module: nn.Module) -> Iterable[str]:
    """Names of linear layers without an adapter."""
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear) and ".lora_" not in name:
            yield name.removesuffix(".base_layer")
