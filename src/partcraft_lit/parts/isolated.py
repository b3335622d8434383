"""A part by itself: everything else is painted grey before its features are computed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.types import PatchFeatures

_GREY = 128


def isolate(image: Tensor, label_map: Tensor, part: int) -> Tensor:
    """Everything but one part in grey.

    Args:
        image: (3, height, width) uint8, of an aspect that is read whole.
        label_map: (grid height, grid width) parts, for the whole image.
        part: which stays.

    Returns:
        (3, height, width) uint8.
    """
    cells = (label_map == part)[None, None].float()
    there = F.interpolate(cells, size=image.shape[1:], mode="nearest")[0, 0] > 0
    return torch.where(there, image, _GREY)


@torch.no_grad()
def isolated_feature(features: PatchFeatures, image: Tensor, label_map: Tensor, part: int) -> Tensor | None:
    """Mean feature of a part that is shown alone.

    The feature of a patch depends on what surrounds it. In a composed image these are neighbours beside which no
    training image showed the part; alone, it is the same wherever it stands.

    Args:
        features: of patches.
        image: (3, height, width) uint8.
        label_map: (grid height, grid width) parts of the image, or of its middle where it is longer than 3:1.
        part: which.

    Returns:
        (D,), the mean of its patches' unit features; None where the part covers no patch.
    """
    grid = features([isolate(clamp_aspect(image), label_map, part)])[0].float()  # (grid height, grid width, D)
    cells = label_map == part
    if cells.shape != grid.shape[:2]:
        cells = F.interpolate(cells[None, None].float(), size=grid.shape[:2], mode="nearest")[0, 0] > 0
    return F.normalize(grid[cells], dim=-1).mean(dim=0) if bool(cells.any()) else None
