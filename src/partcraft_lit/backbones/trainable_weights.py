"""Trainable weights of a backbone: LoRA, the whole denoiser, keys and values of the text, text encoders, or none."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.core.types import Backbone

#: "lora" adds an adapter, "full" trains all weights, "cross_kv" keys and values of cross-attention.
UnetTraining = Literal["lora", "full", "cross_kv", "none"]

_NOTHING = re.compile(r"(?!)")
_CROSS_KV = re.compile(r"(^|\.)attn2\.to_[kv]\.weight$")


def set_trainable(
    backbone: Backbone,
    unet: UnetTraining,
    text_encoder: bool,
    *,
    rank: int,
    alpha: float | None,
    scope: Literal["cross", "all"],
    seed: int,
) -> None:
    """Freezes the backbone and sets ``requires_grad`` of the trainable weights, which become float32.

    Args:
        backbone: without an adapter.
        unet: what trains in the denoiser.
        text_encoder: whether the text encoders train, except for their embedding tables and for layers whose output is
            unused.
        rank, alpha, scope, seed: of the adapter, see ``add_lora``.

    Raises:
        ValueError: for an unknown ``unet``.
    """
    for network in (backbone.denoiser, backbone.vae, *backbone.text_encoders):
        network.requires_grad_(False)
    if unet == "lora":
        targets = backbone.lora_targets(scope)
        add_lora(backbone.denoiser, rank=rank, alpha=alpha, scope=scope, seed=seed, targets=targets)
    elif unet == "full":
        backbone.denoiser.float().requires_grad_(True)
    elif unet == "cross_kv":
        _release(dict(backbone.cross_kv()))
    elif unet != "none":
        raise ValueError(f"unet={unet!r}: known are 'lora', 'full', 'cross_kv' and 'none'.")
    if text_encoder:
        for encoder in backbone.text_encoders:
            table = encoder.get_input_embeddings().weight  # type: ignore[operator]
            unread = _unread(encoder) if len(backbone.text_encoders) > 1 else _NOTHING
            _release({n: p for n, p in encoder.named_parameters() if p is not table and not unread.search(n)})


def _unread(encoder: nn.Module) -> re.Pattern[str]:
    """Names of weights whose output is unused: of SDXL's encoders, the penultimate states are read.

    The encoder with a projection is also pooled at its end.
    """
    if hasattr(encoder, "text_projection"):
        return _NOTHING
    last = int(encoder.config.num_hidden_layers) - 1  # type: ignore[union-attr,arg-type]
    return re.compile(rf"(^|\.)(layers\.{last}|final_layer_norm)\.")


def cross_kv(unet: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Names and weights of the cross-attention key and value projections of a UNet."""
    return [(name, p) for name, p in unet.named_parameters() if _CROSS_KV.search(name)]


def trainable_groups(backbone: Backbone) -> dict[str, list[nn.Parameter]]:
    """Parameters with ``requires_grad`` by the name of their learning rate: "lora", "unet", "text_encoder".

    Empty groups are omitted.
    """
    groups: dict[str, list[nn.Parameter]] = {"lora": [], "unet": [], "text_encoder": []}
    for name, parameter in backbone.denoiser.named_parameters():
        if parameter.requires_grad:
            groups["lora" if ".lora_" in name else "unet"].append(parameter)
    for encoder in backbone.text_encoders:
        groups["text_encoder"] += [p for p in encoder.parameters() if p.requires_grad]
    return {name: parameters for name, parameters in groups.items() if parameters}


def _release(parameters: dict[str, nn.Parameter]) -> None:
    for parameter in parameters.values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
