"""Repulsion of attention: two parts should not look at the same places, wherever these are."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.losses.attention import part_attention_maps
from partcraft_lit.losses.attention_iou import pair_mean


def kl_attention_loss(
    attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int, eps: float = 1e-6
) -> Tensor:
    """``exp(-J)`` for the symmetric KL divergence J of the maps of every two prompted parts, mean over the pairs.

    Each map is made a distribution over the places. The exponential keeps the loss between 0 and 1, so that parts which
    are apart already are not driven further; J itself has no bound.

    Args:
        attention_maps: (B, T, h, w) probability of each part token, mean over heads and layers.
        part_ids: (B, T) part of each token 0...M, -1 where there is none; tokens of one part are summed.
        label_map: (B, H, W), not read: this loss says that parts differ, not where they are.
        num_parts: foreground parts (M).
        eps: added to each probability of a place, in units of its mean; bounds J, and with it the loss, from 0.

    Returns:
        (B,) float32 (float64 for float64 maps); 1 for equal maps, 0 where there are fewer than two parts.

    Raises:
        ValueError: if the shapes do not fit together.

    Source: the repulsion of MOSAIC (arXiv 2509.01977), which maximises J. Differs: bounded, and between part tokens.
    """
    with torch.autocast(attention_maps.device.type, enabled=False):
        maps = attention_maps if attention_maps.dtype == torch.float64 else attention_maps.float()
        maps, prompted = part_attention_maps(maps, part_ids, num_parts)
        flat = maps.flatten(2)  # (B, M + 1, places)
        share = flat / flat.mean(dim=2, keepdim=True).clamp_min(1e-12) + eps
        share = share / share.sum(dim=2, keepdim=True)
        log = share.log()
        pairs = (share[:, :, None] - share[:, None]) * (log[:, :, None] - log[:, None])  # (B, M + 1, M + 1, places)
        divergence = pairs.sum(dim=3)  # each term is at least 0
        return pair_mean((-divergence).exp(), prompted)
