"""A part as a judge sees it: cut out with a margin, or marked in the whole image."""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.images import resize
from partcraft_lit.judges.judge import PartView

#: Grey of what is faded or lies outside of the image.
_GRAY = 127.0
#: Pieces of a part below this share of its largest piece are taken for noise of the label map.
_SMALLEST_PIECE = 0.2
_RED = (230, 20, 20)


def part_box(view: PartView, part: int) -> tuple[int, int, int, int] | None:
    """Top, left, bottom and right of a part in pixels, bottom and right excluded; None where it is not in sight.

    A part may be in pieces, as two legs are; those that are small beside the largest do not count.
    """
    pieces, count = ndimage.label(view.label_map.cpu().numpy() == part)
    if count == 0:
        return None
    sizes = np.bincount(pieces.ravel())[1:]
    kept = np.isin(pieces, 1 + np.flatnonzero(sizes >= _SMALLEST_PIECE * sizes.max()))
    high, wide = (side / cells for side, cells in zip(view.image.shape[1:], kept.shape, strict=True))
    rows, columns = kept.nonzero()
    return (
        math.floor(rows.min() * high),
        math.floor(columns.min() * wide),
        math.ceil((rows.max() + 1) * high),
        math.ceil((columns.max() + 1) * wide),
    )


def crop_part(view: PartView, part: int, margin: float, fade: float) -> Tensor | None:
    """The square around a part; grey where it reaches out of the image.

    Args:
        view: the image.
        part: which part.
        margin: on each side, as a share of the longer side of the part's box.
        fade: how far everything but the part goes to grey, 0...1.

    Returns:
        (3, side, side) uint8 with a side of its own; None where the part is not in sight.
    """
    box = part_box(view, part)
    if box is None:
        return None
    top, left, bottom, right = box
    side = max(1, round((1 + 2 * margin) * max(bottom - top, right - left)))
    first_row, first_column = (top + bottom - side) // 2, (left + right - side) // 2
    faded = _faded(view, part, fade)
    height, width = faded.shape[1:]
    around = (
        max(0, -first_column),
        max(0, first_column + side - width),
        max(0, -first_row),
        max(0, first_row + side - height),
    )
    padded = F.pad(faded, around, value=_GRAY)
    row, column = first_row + around[2], first_column + around[0]
    return padded[:, row : row + side, column : column + side].round().to(torch.uint8)


def mark_part(view: PartView, part: int) -> Tensor | None:
    """The whole image with a red box around a part, (3, height, width) uint8; None where the part is not in sight."""
    box = part_box(view, part)
    if box is None:
        return None
    top, left, bottom, right = box
    marked = view.image.clone()
    line = max(1, round(min(marked.shape[1:]) / 100))
    red = marked.new_tensor(_RED)[:, None, None]
    for rows, columns in (
        (slice(top, top + line), slice(left, right)),
        (slice(max(top, bottom - line), bottom), slice(left, right)),
        (slice(top, bottom), slice(left, left + line)),
        (slice(top, bottom), slice(max(left, right - line), right)),
    ):
        marked[:, rows, columns] = red
    return marked


def _faded(view: PartView, part: int, fade: float) -> Tensor:
    """(3, height, width) float32 in 0...255."""
    image = view.image.float()
    if not fade:
        return image
    inside = (view.label_map.to(image.device) == part).float()[None, None]
    inside = F.interpolate(inside, tuple(image.shape[1:]), mode="bilinear", align_corners=False)[0]
    return _GRAY + (image - _GRAY) * (1 - fade * (1 - inside))


def square(crop: Tensor, side: int) -> Tensor:
    """A square crop with ``side`` pixels on each side."""
    return resize(crop, side, "bicubic")


def fit_pixels(image: Tensor, least: int, most: int) -> Tensor:
    """The same image, enlarged to at least or reduced to at most so many pixels; the aspect is kept."""
    height, width = image.shape[1:]
    scale = math.sqrt(min(max(height * width, least), most) / (height * width))
    if scale == 1:
        return image
    return resize(image, (max(1, round(scale * height)), max(1, round(scale * width))), "bicubic")
