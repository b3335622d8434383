"""A segmenter and what a person has changed of its parts: regions that are merged, split, dropped or moved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from partcraft_lit.core.types import BACKGROUND
from partcraft_lit.parts.kmeans import nearest
from partcraft_lit.parts.segmenter import Segmenter, absorb_small_components

#: Owner of a region that is dropped: its cells go to the parts around it, whose features stay as they are.
DROPPED = -1

#: Label of the segmenter underneath -> (cells, D) directions of the cells with it, row by row, in half precision.
Cells = Callable[[int], Tensor]


@dataclass(frozen=True)
class Move:
    """A region of one image that belongs to another part.

    Attributes:
        image: name of the image.
        source, target: parts.
        at: x and y of a point of the region, as shares of the width and the height of the label map, 0...1; None for
            all of the part.
    """

    image: str
    source: int
    target: int
    at: tuple[float, float] | None = None


@dataclass(frozen=True)
class CorrectedSegmenter:
    """Regions are the labels 0...M of a segmenter, then the pieces that are split off them; each belongs to a part.

    Attributes:
        base: the segmenter underneath, which no correction changes.
        num_parts: largest number of a part. Parts without a region are retired.
        owners: part of each region, or ``DROPPED``.
        splits: label -> (k, D) centroids of length 1. The cells nearest to the first keep the label as their region;
            those nearest to the others are regions of their own, numbered from M + 1 in the order of this mapping.
        moves: of single images, by name; they change these images and nothing else.
    """

    base: Segmenter
    num_parts: int
    owners: tuple[int, ...]
    splits: Mapping[int, Tensor] = field(default_factory=dict)
    moves: tuple[Move, ...] = ()

    def __post_init__(self) -> None:
        regions = self.base.num_parts + 1 + sum(len(table) - 1 for table in self.splits.values())
        if len(self.owners) != regions:
            raise ValueError(f"{regions} regions need as many owners, got {len(self.owners)}.")
        if self.owners[BACKGROUND] != BACKGROUND or not all(DROPPED <= part <= self.num_parts for part in self.owners):
            raise ValueError(f"Owners are parts 0...{self.num_parts}, of the background 0, got {self.owners}.")

    @property
    def dim(self) -> int:
        return self.base.dim

    @property
    def retired(self) -> tuple[int, ...]:
        """Parts that no region belongs to any more."""
        return tuple(part for part in range(self.num_parts + 1) if part not in self.owners)

    @cached_property
    def hash(self) -> str:
        """Of everything that decides a label map, the features apart."""
        moves = [[move.image, move.source, move.target, move.at] for move in self.moves]
        about = ["corrected", 1, self.base.hash, self.num_parts, self.owners, list(self.splits), moves]
        digest = hashlib.sha256(json.dumps(about).encode())
        for table in self.splits.values():
            digest.update(str(tuple(table.shape)).encode() + table.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def sources(self, part: int) -> frozenset[tuple[int, int, int]]:
        """What makes up a part: label, number of pieces that it is split into, and which of them, of each region."""
        return frozenset(
            (label, len(self.splits.get(label, (0,))), piece)
            for region, (label, piece) in enumerate(self._regions)
            if self.owners[region] == part
        )

    def part_of_piece(self, label: int, piece: int) -> int:
        """The part that owns a piece of a label, or ``DROPPED``."""
        return self.owners[self._regions.index((label, piece))]

    @cached_property
    def _regions(self) -> list[tuple[int, int]]:
        """Label and piece of each region."""
        split_off = [(label, piece) for label, table in self.splits.items() for piece in range(1, len(table))]
        return [(label, 0) for label in range(self.base.num_parts + 1)] + split_off

    def read_all(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Label map and part features, (M' + 1, D), of each (grid height, grid width, D); without moves."""
        return [
            self.correct(label_map, means, cells_of(self.base, grid, label_map))
            for grid, (label_map, means) in zip(features, self.base.read_all(features), strict=True)
        ]

    def correct(
        self, label_map: Tensor, part_features: Tensor, cells: Cells, moves: Sequence[Move] = ()
    ) -> tuple[Tensor, Tensor]:
        """Corrects what the segmenter underneath has read off one image.

        Args:
            label_map: (grid height, grid width), 0...M.
            part_features: (M + 1, D) mean direction of each label.
            cells: asked for labels that are split, and for all that the image shows if it has moves.
            moves: of this image.

        Returns:
            the corrected map, uint8, and (M' + 1, D) mean directions. Of a part that is one whole label they are those
            that came; the cells of dropped regions count in none.
        """
        regions, means = self._split(label_map, part_features, cells)
        owners = torch.tensor(self.owners)
        counts = torch.bincount(regions.flatten(), minlength=len(owners))
        features = torch.zeros(self.num_parts + 1, self.dim)
        for part in set(self.owners) - {DROPPED}:
            own = [region for region in (owners == part).nonzero()[:, 0].tolist() if counts[region]]
            if len(own) == 1:
                features[part] = means[own[0]]
            elif own:
                weights = counts[own].float()
                features[part] = (weights @ torch.stack([means[region] for region in own])) / weights.sum()
        corrected = _filled(owners[regions])
        for move in moves:
            corrected = _moved(corrected, move)
        if moves:
            directions = _all_cells(label_map, cells)
            for part in {move.source for move in moves} | {move.target for move in moves}:
                inside = corrected == part
                features[part] = directions[inside].mean(dim=0) if inside.any() else 0.0
        return corrected.to(torch.uint8), features

    def _split(self, label_map: Tensor, part_features: Tensor, cells: Cells) -> tuple[Tensor, dict[int, Tensor]]:
        """Regions of the cells, and the mean direction of each region."""
        regions, means = label_map.long(), dict(enumerate(part_features.float()))
        first = self.base.num_parts + 1
        for label, table in self.splits.items():
            inside = label_map == label
            if inside.any():
                directions = cells(label).float()
                pieces = self._without_specks(inside, nearest(directions, table), len(table))
                numbers = torch.tensor([label, *range(first, first + len(table) - 1)])
                regions = regions.masked_scatter(inside, numbers[pieces])
                for piece, region in enumerate(numbers.tolist()):
                    own = directions[pieces == piece]
                    means[region] = own.mean(dim=0) if len(own) else torch.zeros(self.dim)
            first += len(table) - 1
        return regions, means

    def _without_specks(self, inside: Tensor, pieces: Tensor, number: int) -> Tensor:
        """Small components of a piece go to the other pieces around them."""
        smallest = self.base.min_component_size
        if smallest <= 1:
            return pieces
        spread = torch.zeros(inside.shape, dtype=torch.long).masked_scatter(inside, pieces + 1)
        absorbed = absorb_small_components(spread[None], number + 1, smallest)[0][inside]
        return torch.where(absorbed > 0, absorbed - 1, pieces)


def cells_of(segmenter: Segmenter, grid: Tensor, label_map: Tensor) -> Cells:
    """Cells of an image whose features, (grid height, grid width, D), are at hand."""
    return lambda label: segmenter.directions(grid[label_map == label]).half()


def _filled(parts: Tensor) -> Tensor:
    """Cells of dropped regions take the part of the nearest other cell; the background, if there is none."""
    dropped = (parts == DROPPED).numpy()
    if not dropped.any():
        return parts
    if dropped.all():
        return torch.zeros_like(parts)
    rows, columns = ndimage.distance_transform_edt(dropped, return_distances=False, return_indices=True)
    return parts[torch.from_numpy(rows).long(), torch.from_numpy(columns).long()]


def _moved(parts: Tensor, move: Move) -> Tensor:
    """A 4-connected component of the source that is nearest to the point, or all of it, becomes the target."""
    inside = parts == move.source
    if move.at is not None and bool(inside.any()):
        components, _ = ndimage.label(inside.numpy())
        height, width = parts.shape
        rows, columns = np.nonzero(components)
        away = np.hypot((rows + 0.5) / height - move.at[1], (columns + 0.5) / width - move.at[0])
        nearest_cell = int(away.argmin())
        inside = torch.from_numpy(components == components[rows[nearest_cell], columns[nearest_cell]])
    return parts.masked_fill(inside, move.target)


def _all_cells(label_map: Tensor, cells: Cells) -> Tensor:
    """(grid height, grid width, D) float32 directions, put together from those of each label."""
    directions: Tensor | None = None
    for label in label_map.unique().tolist():
        own = cells(label).float()
        if directions is None:
            directions = torch.zeros(*label_map.shape, own.shape[1])
        directions[label_map == label] = own
    assert directions is not None
    return directions
