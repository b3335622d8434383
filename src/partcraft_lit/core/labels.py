"""Label maps at other resolutions, by majority: each new cell takes the label that covers most of it.

Sampling at cell centres would read a border between two cells at every even ratio: rounding then moves all edges half a
cell to one side, and the map of a mirrored image is not the mirrored map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

#: Cells times labels that are counted in one go.
_CELLS_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Axis:
    """How new cells lie on old ones along one axis; shared, so its tensors are not to be changed.

    Attributes:
        first, last: range of the old cells that are covered at all.
        weights: (n, last - first) lengths that new and old cells share, whole numbers; equal neighbours are one row.
        rows: (count,) row of each new cell; None if each has its own.
        source: (count,) old cell of each new one where each lies in a single one; else None.
        fields: (n,) distance from the nearer end, odd or even.
    """

    first: int
    last: int
    weights: Tensor
    rows: Tensor | None
    source: Tensor | None
    fields: Tensor


@lru_cache(maxsize=1024)
def axis(start: int, step: int, count: int, cell: int, cells: int, device: torch.device) -> Axis:
    """An `Axis` in integers, so that ties are exact.

    Args:
        start: where the first new cell begins, from the beginning of the first old one.
        step: length of a new cell.
        count: number of new cells.
        cell: length of an old cell, in the unit of ``start`` and ``step``.
        cells: number of old cells; the first and the last extend beyond the map.
        device: of the tensors.
    """
    unit = math.gcd(start, step, cell)
    start, step, cell = start // unit, step // unit, cell // unit
    begins = start + step * torch.arange(count)[:, None]
    old = cell * torch.arange(cells)
    ends = old + cell
    old[0], ends[-1] = min(0, start), max(int(ends[-1]), start + step * count)
    shared = (torch.minimum(begins + step, ends) - torch.maximum(begins, old)).clamp_min(0)
    seen = shared.sum(dim=0).nonzero().flatten()
    first, last = int(seen[0]), int(seen[-1]) + 1
    single = bool((shared.count_nonzero(dim=1) == 1).all())
    weights, rows = shared[:, first:last], None
    if count > 2 * cells:
        weights, rows = weights.unique_consecutive(dim=0, return_inverse=True)
    places = torch.arange(len(weights))
    # Areas are whole numbers: exact in float64, and in float32, which is all that MPS has, up to 4096 x 4096 units.
    return Axis(
        first,
        last,
        weights.to(device, torch.float32 if device.type == "mps" else torch.float64),
        None if rows is None else rows.to(device),
        shared.argmax(dim=1).to(device) if single else None,
        (torch.minimum(places, len(weights) - 1 - places) % 2).to(device),
    )


def resize_labels(labels: Tensor, size: Sequence[int], num_labels: int | None = None) -> Tensor:
    """(..., H, W) labels -> (..., *size), same type; see `vote`."""
    if tuple(labels.shape[-2:]) == tuple(size):
        return labels
    down, across = (
        axis(0, old, new, new, old, labels.device) for old, new in zip(labels.shape[-2:], size, strict=True)
    )
    return vote(labels, down, across, num_labels)


def vote(labels: Tensor, down: Axis, across: Axis, num_labels: int | None = None) -> Tensor:
    """The label with the largest area in each new cell.

    Ties go to the smallest label in one half of the cells and to the largest in the other, as the fields of a
    chessboard that is its own mirror image. So the result commutes with mirroring, exactly, and no label grows on
    average.

    Args:
        labels: (..., H, W) integers.
        down, across: the new cells along both axes.
        num_labels: labels from here on are no label, and become ``num_labels``. None finds out which labels there are,
            for which a GPU has to be waited for.

    Returns:
        (..., h, w), same type and device.
    """
    if num_labels is not None:
        labels = labels.clamp_max(num_labels)
    if down.source is not None and across.source is not None:
        return labels[..., down.source[:, None], across.source]
    labels = labels[..., down.first : down.last, across.first : across.last]
    if num_labels is None:
        found = labels.unique()  # ascending
    else:
        found = torch.arange(num_labels + 1, device=labels.device).to(labels.dtype)
    odd = (down.fields[:, None] + across.fields) % 2 == 1  # (h, w)
    best = torch.full((), -1.0, device=labels.device, dtype=down.weights.dtype)
    result = torch.zeros_like(labels[..., :1, :1])
    with torch.autocast(labels.device.type, enabled=False):
        for some in found.split(max(1, _CELLS_AT_ONCE // labels.numel())):
            members = (labels == some.view(-1, *[1] * labels.ndim)).to(best.dtype)  # (labels, ..., H, W)
            area = _weighted(across.weights, _weighted(down.weights, members).mT).mT
            for label, covered in zip(some, area):
                wins = (covered > best) | ((covered == best) & odd & (covered > 0))
                result, best = torch.where(wins, label, result), torch.where(wins, covered, best)
    result = result if down.rows is None else result[..., down.rows, :]
    return result if across.rows is None else result[..., across.rows]


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """(h, H) @ (..., H, W); row by row where each new cell covers only few of many old ones."""
    if weights.shape[1] <= 8 * weights.shape[0]:
        return weights @ values
    sums = []
    for row in weights:
        covered = row.nonzero().flatten()
        band = slice(int(covered[0]), int(covered[-1]) + 1)
        sums.append(row[band] @ values[..., band, :])
    return torch.stack(sums, dim=-2)
