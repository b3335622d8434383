"""The pass that draws a sample of patches from all images, which foreground and parts are fitted on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from partcraft_lit.images import clamp_aspect
from partcraft_lit.parts.foreground import PatchPlaces, inwardness
from partcraft_lit.parts.labelling import Progress, with_features
from partcraft_lit.parts.spool import FeatureSpool
from partcraft_lit.randomness import torch_generator
from partcraft_lit.store import Entry
from partcraft_lit.types import ImageSource, PatchFeatures


@dataclass(frozen=True)
class Sample:
    """Patches drawn from all images: (P, D) features and their places."""

    features: Tensor
    places: PatchPlaces


def sample_patches(
    source: ImageSource,
    features: PatchFeatures,
    *,
    seed: int,
    max_patches: int,
    batch_size: int,
    spool: FeatureSpool,
    progress: Progress,
) -> Sample:
    """Draws the same number of patches of every image, by (seed, image) alone; in the order of the images.

    Several processes of a run each do all of it. What a network says of an image differs in its last bit with the other
    images of its batch; where two processes meet in a shared list, they would fit other clusters, and part ways.

    Args:
        source: the images.
        features: describes their patches.
        seed: of the draws.
        max_patches: in the sample; of more images than that, as many are looked at, spread evenly.
        batch_size: images given to ``features`` at once.
        spool: takes in the features of whole images.
        progress: told how many images are done.
    """
    chosen = _spread_evenly(len(source), max_patches)
    quota = max(max_patches // len(chosen), 1)
    drawn = _Drawn(chosen, quota)

    def draw(numbers: list[int]) -> Iterator[Entry]:
        found = list(with_features(source, features, [chosen[number] for number in numbers], batch_size))
        sizes = [(grid.shape[0], grid.shape[1]) for _, _, grid in found]
        inward = inwardness([clamp_aspect(pixels) for _, pixels, _ in found], sizes)
        for (index, _, grid), size, depth in zip(found, sizes, inward, strict=True):
            spool.put(index, grid)
            generator = torch_generator(seed, "patches", index)
            cells = torch.randperm(size[0] * size[1], generator=generator)[:quota].sort().values
            kept = {"features": grid.flatten(0, 1)[cells], "inwardness": depth.flatten()[cells]}
            yield {**kept, "cells": cells.int(), "size": torch.tensor(size)}

    for start in range(0, len(chosen), batch_size):
        numbers = list(range(start, min(start + batch_size, len(chosen))))
        for number, entry in zip(numbers, draw(numbers), strict=True):
            drawn.put(number, entry)
        progress("sample patches", numbers[-1] + 1, len(chosen))
    return drawn.sample()


def _spread_evenly(number: int, most: int) -> list[int]:
    """All images; where there are more than patches wanted, as many, spread evenly."""
    return list(range(number)) if number <= most else [index * number // most for index in range(most)]


class _Drawn:
    """Patches of many images, in blocks: of small tensors each takes more room than its numbers."""

    def __init__(self, chosen: list[int], quota: int) -> None:
        self._chosen, self._quota = torch.tensor(chosen), quota
        self._features = torch.empty(0)
        self._cells = torch.zeros(len(chosen), quota, dtype=torch.int32)
        self._inwardness = torch.zeros(len(chosen), quota)
        self._sizes = torch.zeros(len(chosen), 2, dtype=torch.int32)
        self._counts = torch.zeros(len(chosen), dtype=torch.long)

    def put(self, number: int, entry: Entry) -> None:
        count = len(entry["cells"])
        if not len(self._features):  # room that is not used takes no memory
            self._features = torch.empty(len(self._chosen) * self._quota, entry["features"].shape[1])
        start = number * self._quota
        self._features[start : start + count] = entry["features"]
        self._cells[number, :count] = entry["cells"]
        self._inwardness[number, :count] = entry["inwardness"]
        self._sizes[number] = entry["size"]
        self._counts[number] = count

    def sample(self) -> Sample:
        used = torch.arange(self._quota) < self._counts[:, None]  # (images, quota)
        heights, widths = self._sizes.repeat_interleave(self._counts, dim=0).unbind(dim=1)
        places = PatchPlaces.of_cells(
            self._cells[used], heights, widths, self._chosen.repeat_interleave(self._counts), self._inwardness[used]
        )
        return Sample(self._moved_up(), places)

    def _moved_up(self) -> Tensor:
        """The features without the gaps that small images leave; in place, since they are the largest thing here."""
        end = 0
        for number, count in enumerate(self._counts.tolist()):
            start = number * self._quota
            if start > end:
                self._features[end : end + count] = self._features[start : start + count].clone()
            end += count
        return self._features[:end]
