"""Keys and values of the first text position, which train nothing in Custom Diffusion and DisenDiff."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


def detach_start_token(unet: nn.Module) -> list[RemovableHandle]:
    """From now on no gradient passes through the first text position's keys and values in cross-attention.

    That position is the same for every text, and much of the attention goes there: training on it would change every
    picture. Outputs stay equal to the bit. The hooks sit on the projections, so they hold for any attention processor.

    Args:
        unet: diffusers' UNet.

    Returns:
        Handles; ``remove()`` of each takes the hooks away.

    Source: the released code of Custom Diffusion (arXiv 2212.04488). Differs: no.
    """
    return [
        projection.register_forward_hook(_detach_first)
        for name, layer in unet.named_modules()
        if name.rpartition(".")[2] == "attn2"
        for projection in (layer.to_k, layer.to_v)
    ]


def _detach_first(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)  # (B, L, width)
