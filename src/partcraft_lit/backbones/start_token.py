"""Detaches keys and values of the start token, as Custom Diffusion and DisenDiff do."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def detach_start_token(denoiser: nn.Module) -> list[RemovableHandle]:
    """Stops gradients through the start token's keys and values, by forward hooks.

    The start token is the same in every text and attracts much attention: training on it would change every image.
    Outputs stay bit-identical. Hooks are on the projections, so any attention processor works.

    Args:
        denoiser: diffusers' UNet with cross-attention, or a transformer with keys and values of the text in one layer.

    Returns:
        Handles, to remove the hooks.

    Source: the released code of Custom Diffusion (arXiv 2212.04488). Differs: no.
    """
    return [
        projection.register_forward_hook(_detach_first)
        for name, layer in denoiser.named_modules()
        for projection in _text_projections(name.rpartition(".")[2], layer)
    ]


def _text_projections(kind: str, layer: Any) -> tuple[nn.Module, ...]:
    if kind == "attn2":
        return (layer.to_k, layer.to_v)
    return (layer,) if kind == "txt_kv_proj" else ()


def _detach_first(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)  # (B, L, width)
