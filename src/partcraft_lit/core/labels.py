"""Label maps at other resolutions, by majority: each new cell takes the label that covers most of it.

Sampling at cell centres would read a border between two cells at every even ratio: rounding then moves all edges half a
cell to one side, and the map of a mirrored image is not the mirrored map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

#: Cells times labels that are counted in one go.
_CELLS_AT_ONCE = 1 << 20


def resize_labels(labels: Tensor, size: Sequence[int]) -> Tensor:
    """(..., H, W) labels -> (..., *size), same type; see `vote`."""
    height, width = size
    if tuple(labels.shape[-2:]) == (height, width):
        return labels
    rows = overlaps(0, labels.shape[-2], height, height, labels.shape[-2])
    columns = overlaps(0, labels.shape[-1], width, width, labels.shape[-1])
    return vote(labels, rows, columns)


@lru_cache(maxsize=1024)
def overlaps(start: int, step: int, count: int, cell: int, cells: int) -> Tensor:
    """(count, cells) lengths that new cells and old ones share, in a common integer unit; not to be changed.

    Args:
        start: where the first new cell begins, from the beginning of the first old one.
        step: length of a new cell.
        count: number of new cells.
        cell: length of an old cell.
        cells: number of old cells. What lies beyond them counts as the last one.
    """
    unit = math.gcd(start, step, cell)
    start, step, cell = start // unit, step // unit, cell // unit
    first = start + step * torch.arange(count)[:, None]
    old = cell * torch.arange(cells)
    ends = old + cell
    if cells:
        limit = max(int(ends[-1]), start + step * count)
        old, ends = old.clone(), ends.clone()
        old[0], ends[-1] = min(0, start), limit
    return (torch.minimum(first + step, ends) - torch.maximum(first, old)).clamp_min(0)


def vote(labels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The label with the largest area in each new cell.

    Ties go to the smallest label in one half of the cells and to the largest in the other, as the fields of a
    chessboard that is its own mirror image. So the result commutes with mirroring, exactly, and no label grows on
    average.

    Args:
        labels: (..., H, W) integers.
        rows, columns: (h, H) and (w, W), as `overlaps` gives them.

    Returns:
        (..., h, w), same type and device.
    """
    if _one_each(rows) and _one_each(columns):
        down, across = (weights.argmax(dim=1).to(labels.device) for weights in (rows, columns))
        return labels[..., down[:, None], across]
    if len(rows) > 2 * rows.shape[1] and len(columns) > 2 * columns.shape[1]:  # most cells repeat their neighbour
        (rows, down), (columns, across) = (w.unique_consecutive(dim=0, return_inverse=True) for w in (rows, columns))
        return vote(labels, rows, columns)[..., down.to(labels.device)[:, None], across.to(labels.device)]
    # Areas are whole numbers: exact in float64, and in float32, which is all that MPS has, up to 4096 x 4096 units.
    precise = torch.float32 if labels.device.type == "mps" else torch.float64
    down, across = (weights.to(labels.device, precise) for weights in (rows, columns))
    fields = (_from_edge(len(rows))[:, None] + _from_edge(len(columns))).to(labels.device) % 2 == 1  # (h, w)
    found = labels.unique()  # ascending
    at_once = max(1, _CELLS_AT_ONCE // labels.numel())
    result, best = torch.zeros_like(labels[..., :1, :1]), torch.tensor(-1.0, device=labels.device, dtype=precise)
    with torch.autocast(labels.device.type, enabled=False):
        for some in found.split(at_once):
            members = labels == some.view(-1, *[1] * labels.ndim)  # (labels, ..., H, W)
            area = _weighted(across, _weighted(down, members.to(precise)).mT).mT
            for label, covered in zip(some, area):
                wins = (covered > best) | ((covered == best) & fields)
                result, best = torch.where(wins, label, result), torch.where(wins, covered, best)
    return result


def _one_each(weights: Tensor) -> bool:
    """Whether each new cell lies in a single old one."""
    return bool((weights.count_nonzero(dim=1) == 1).all())


def _weighted(weights: Tensor, values: Tensor) -> Tensor:
    """(h, H) @ (..., H, W); row by row where each new cell sees only few of many old ones."""
    if weights.shape[1] <= 8 * weights.shape[0]:
        return weights @ values
    sums = []
    for row in weights:
        seen = row.nonzero().flatten()
        band = slice(int(seen[0]), int(seen[-1]) + 1)
        sums.append(row[band] @ values[..., band, :])
    return torch.stack(sums, dim=-2)


def _from_edge(length: int) -> Tensor:
    """(length,) distance of each cell from the nearer end."""
    places = torch.arange(length)
    return torch.minimum(places, length - 1 - places)
