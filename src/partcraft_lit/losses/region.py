"""Where the diffusion loss counts."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.losses.attention import resize_labels


def prompted_region(label_map: Tensor, part_ids: Tensor, height: int, width: int) -> Tensor:
    """Places that show a part whose token is in the prompt: the union of those parts' masks.

    Args:
        label_map: (B, s, s) part of each cell, 0 is the background.
        part_ids: (B, T) part of each token, -1 where there is none.
        height, width: of the latents; cells are repeated or dropped to that size.

    Returns:
        (B, height, width) float32, 0 or 1.

    Source: union sampling of Break-a-Scene (arXiv 2305.16311). Differs: no.
    """
    labels = resize_labels(label_map, height, width).long()
    prompted = (labels[:, None] == part_ids[:, :, None, None]).any(dim=1)
    return prompted.to(torch.float32)


def combine_regions(region: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Both regions at once; None is everywhere."""
    if region is None or other is None:
        return other if region is None else region
    return region * other
