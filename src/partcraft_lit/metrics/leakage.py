"""Attention leakage between parts."""

from __future__ import annotations

import torch
from torch import Tensor


def leakage_matrix(attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int) -> Tensor:
    """Share of each part's attention that falls on each part's region; the diagonal is what should be large.

    Tokens of one part in one prompt are summed; images count alike, whatever their attention's total.

    Args:
        attention_maps: (B, T, s, s) non-negative, any scale.
        part_ids: (B, T) part of each token, -1 where unused.
        label_map: (B, s, s) part of each place.
        num_parts: foreground parts M.

    Returns:
        (M + 1, M + 1) float64 on the CPU: entry (i, j) is the attention of part i's tokens inside region j. Rows add to
        1; the row of a part that no prompt names, or that gets no attention, is NaN.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    batch, tokens, high, wide = attention_maps.shape
    if part_ids.shape != (batch, tokens) or label_map.shape != (batch, high, wide):
        raise ValueError(
            f"attention_maps {tuple(attention_maps.shape)} need part_ids {(batch, tokens)} and label_map "
            f"{(batch, high, wide)}; got {tuple(part_ids.shape)} and {tuple(label_map.shape)}."
        )
    parts = torch.arange(num_parts + 1)
    maps, ids, labels = attention_maps.cpu().double(), part_ids.cpu(), label_map.cpu().long()
    attention = torch.einsum("bthw,bti->bihw", maps, (ids[..., None] == parts).double())  # (B, M + 1, s, s)
    mass = torch.einsum("bihw,bhwj->bij", attention, (labels[..., None] == parts).double())  # (B, M + 1, M + 1)
    totals = mass.sum(dim=2, keepdim=True)
    return (mass / torch.where(totals > 0, totals, torch.nan)).nanmean(dim=0)
