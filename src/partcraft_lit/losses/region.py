"""Masks of the diffusion loss."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.core.labels import resize_labels


def prompted_region(label_map: Tensor, part_ids: Tensor, height: int, width: int) -> Tensor:
    """Union of the masks of the parts whose tokens are in the prompt.

    Args:
        label_map: (B, s, s) part of each cell, 0 for the background.
        part_ids: (B, T) part of each token, -1 where unused.
        height, width: of the latents, to which labels are resized by majority.

    Returns:
        (B, height, width) float32, 0 or 1.

    Source: union sampling of Break-a-Scene (arXiv 2305.16311). Differs: no.
    """
    labels = resize_labels(label_map, (height, width)).long()
    prompted = (labels[:, None] == part_ids[:, :, None, None]).any(dim=1)
    return prompted.to(torch.float32)


def combine_regions(region: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Product of two loss masks; None is all ones."""
    if region is None or other is None:
        return other if region is None else region
    return region * other
