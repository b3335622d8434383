"""KL repulsion between the attention maps of parts."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.losses.attention import part_attention_maps
from partcraft_lit.losses.attention_iou import pair_mean


def kl_attention_loss(
    attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int, eps: float = 1e-6
) -> Tensor:
    """``exp(-J)`` for the symmetric KL divergence J of the maps of every two prompted parts, mean over the pairs.

    Each map is normalised over the pixels. The exponential bounds the loss to 0...1, so that disjoint parts are not
    driven further apart; J itself is unbounded.

    Args:
        attention_maps: (B, T, h, w) attention probabilities of the part tokens, mean over heads and layers.
        part_ids: (B, T) part of each token 0...M, -1 where unused; tokens of one part are summed.
        label_map: (B, H, W), unused: the loss needs no masks.
        num_parts: foreground parts (M).
        eps: added to each pixel's probability, relative to the mean; bounds J.

    Returns:
        (B,) float32 (float64 for float64 maps); 1 for equal maps, 0 where there are fewer than two parts.

    Raises:
        ValueError: if the shapes do not match.

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
