"""From the patch features of one image to its parts: nearest centroids, twice."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.types import BACKGROUND
from partcraft_lit.parts.kmeans import nearest


@dataclass(frozen=True)
class Segmenter:
    """Tiers 1 and 2.

    Attributes:
        offset: (D,) subtracted from every feature before anything else; zeros for none.
        foreground_centroids: (k0, D) of length 1.
        is_foreground: (k0,) bool.
        part_centroids: (M, D) of length 1.
        min_cells: a part with fewer cells counts as absent; its cells go to the next nearest part.
        min_component_size: connected components of fewer cells take the label of their surroundings; 1 keeps all.
    """

    offset: Tensor
    foreground_centroids: Tensor
    is_foreground: Tensor
    part_centroids: Tensor
    min_cells: int = 1
    min_component_size: int = 1

    @property
    def num_parts(self) -> int:
        return len(self.part_centroids)

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.part_centroids.shape[1]

    @property
    def retired(self) -> tuple[int, ...]:
        """Parts that corrections took away: none; see ``parts.corrected``."""
        return ()

    def sources(self, part: int) -> frozenset[tuple[int, int, int]]:
        """Label, number of pieces of it, and which of them: what makes up a part; see ``parts.corrected``."""
        return frozenset({(part, 1, 0)})

    @cached_property
    def hash(self) -> str:
        """Of everything that decides a label map, the features apart."""
        digest = hashlib.sha256(json.dumps(["segmenter", 1, self.min_cells, self.min_component_size]).encode())
        for tensor in (self.offset, self.foreground_centroids, self.is_foreground, self.part_centroids):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def directions(self, features: Tensor) -> Tensor:
        """(..., D) features -> (..., D) of length 1, after the offset."""
        return F.normalize(features.float() - self.offset, dim=-1)

    def foreground(self, directions: Tensor) -> Tensor:
        """(..., D) directions -> (...,) bool."""
        return self.is_foreground[nearest(directions, self.foreground_centroids)]

    def label_all(self, features: Sequence[Tensor]) -> list[Tensor]:
        """(grid height, grid width, D) each -> (grid height, grid width) uint8 each, 0 background, 1...M."""
        labels = [self._nearest_parts(grid) for grid in features]
        if self.min_component_size > 1:
            labels = self._without_small_components(labels)
        if self.min_cells > 1:
            labels = [
                self._without_small_parts(label_map, self.directions(grid))
                for label_map, grid in zip(labels, features, strict=True)
            ]
        return [label_map.to(torch.uint8) for label_map in labels]

    def read_all(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Label map and part features, (M + 1, D), of each (grid height, grid width, D)."""
        return [
            (label_map, self.describe(grid, label_map))
            for grid, label_map in zip(features, self.label_all(features), strict=True)
        ]

    def _nearest_parts(self, features: Tensor) -> Tensor:
        directions = self.directions(features)
        labels = nearest(directions, self.part_centroids) + 1
        labels[~self.foreground(directions)] = BACKGROUND
        return labels

    def _without_small_components(self, labels: list[Tensor]) -> list[Tensor]:
        alike: dict[torch.Size, list[int]] = defaultdict(list)
        for number, label_map in enumerate(labels):
            alike[label_map.shape].append(number)
        cleaned: dict[int, Tensor] = {}
        for numbers in alike.values():
            together = torch.stack([labels[number] for number in numbers])
            absorbed = absorb_small_components(together, self.num_parts + 1, self.min_component_size)
            cleaned.update(zip(numbers, absorbed, strict=True))
        return [cleaned[number] for number in range(len(labels))]

    def describe(self, features: Tensor, label_map: Tensor) -> Tensor:
        """Mean direction of each part: (M + 1, D), zeros where the part is absent."""
        flat = self.directions(features).flatten(0, 1)  # (cells, D)
        member = F.one_hot(label_map.flatten().long(), self.num_parts + 1).float()  # (cells, M + 1)
        return (member.T @ flat) / member.sum(dim=0).clamp_min(1)[:, None]

    def _without_small_parts(self, labels: Tensor, directions: Tensor) -> Tensor:
        cells = torch.bincount(labels.flatten(), minlength=self.num_parts + 1)[1:]
        small = (cells > 0) & (cells < self.min_cells)
        if not bool(small.any()):
            return labels
        kept = cells >= self.min_cells
        lost = torch.isin(labels, small.nonzero()[:, 0] + 1)
        if not bool(kept.any()):
            return labels.masked_fill(lost, BACKGROUND)
        alive = self.part_centroids * kept[:, None]  # a row of zeros is never the nearest
        return torch.where(lost, nearest(directions, alive) + 1, labels)


def absorb_small_components(labels: Tensor, num_labels: int, min_size: int) -> Tensor:
    """Gives every connected component of fewer than ``min_size`` cells the commonest label of the cells around it.

    Components are 4-connected; the cells around them are the 8 neighbours. All components are judged on the map as it
    came, so the order does not matter; a component that covers the whole map stays.

    Args:
        labels: (images, grid height, grid width) int64.
        num_labels: labels run 0...num_labels - 1; of equally common ones the smallest is taken.
        min_size: cells a component needs in order to stay.
    """
    maps = labels.numpy()
    components = connected_components(maps)
    sizes = np.bincount(components.ravel())
    boxes = ndimage.find_objects(components + 1)
    result = maps.copy()
    for component in np.flatnonzero(sizes < min_size):
        image, rows, columns = boxes[component]
        window = (image, _grown(rows), _grown(columns))
        inside = components[window] == component
        around = ndimage.binary_dilation(inside[0], np.ones((3, 3)))[None] & ~inside
        if around.any():
            result[window][inside] = np.bincount(maps[window][around], minlength=num_labels).argmax()
    return torch.from_numpy(result)


def connected_components(labels: NDArray[np.integer]) -> NDArray[np.int64]:
    """(images, height, width) labels -> for each cell, the number of its 4-connected component of equal labels.

    Numbers count from 0 over all images; no component reaches from one image into another.
    """
    within_image = np.zeros((3, 3, 3), dtype=bool)
    within_image[1] = ndimage.generate_binary_structure(2, 1)
    components, count = np.zeros(labels.shape, dtype=np.int64), 0
    for label in np.unique(labels):
        numbered, number = ndimage.label(labels == label, within_image)
        components[numbered > 0] = numbered[numbered > 0] + (count - 1)
        count += number
    return components


def _grown(side: slice) -> slice:
    """One cell more at either end."""
    return slice(max(side.start - 1, 0), side.stop + 1)
