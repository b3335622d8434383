"""The pass that draws a sample of patches from all images, which foreground and parts are fitted on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import ImageSource, PatchFeatures
from partcraft_lit.parts.foreground import PatchPlaces, inwardness
from partcraft_lit.parts.on_disk import FeatureCache
from partcraft_lit.parts.segmentation import Progress, with_features


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
    cache: FeatureCache,
    progress: Progress,
) -> Sample:
    """Draws the same number of patches of every image, by (seed, image) alone; in the order of the images.

    Several processes of a run each do all of it. The output for an image differs in its last bit with the other
    images of its batch; where two processes meet in a shared list, they would fit other clusters, and part ways.

    Args:
        source: the images.
        features: describes their patches.
        seed: of the draws.
        max_patches: in the sample; of more images than that, as many are looked at, spread evenly.
        batch_size: images given to ``features`` at once.
        cache: takes in the features of whole images.
        progress: called with stage, done and total.
    """
    chosen = _spread_evenly(len(source), max_patches)
    quota = max(max_patches // len(chosen), 1)
    drawn = _Drawn(chosen, quota)

    for start in range(0, len(chosen), batch_size):
        described = list(with_features(source, features, chosen[start : start + batch_size], batch_size))
        sizes = [(grid.shape[0], grid.shape[1]) for _, _, grid in described]
        inward = inwardness([clamp_aspect(pixels) for _, pixels, _ in described], sizes)
        for (index, _, grid), depth in zip(described, inward, strict=True):
            cache.put(index, grid)
            generator = torch_generator(seed, "patches", index)
            drawn.add(grid, depth, torch.randperm(depth.numel(), generator=generator)[:quota].sort().values)
        progress("sample patches", start + len(described), len(chosen))
    return drawn.sample()


def _spread_evenly(number: int, most: int) -> list[int]:
    """At most ``most`` image indices, spread evenly."""
    return list(range(number)) if number <= most else [index * number // most for index in range(most)]


class _Drawn:
    """Patches of image after image, in blocks: of small tensors each takes more room than its numbers."""

    def __init__(self, chosen: list[int], quota: int) -> None:
        self._chosen, self._room = torch.tensor(chosen), len(chosen) * quota
        self._features = torch.empty(0)
        self._cells = torch.zeros(self._room, dtype=torch.int32)
        self._inwardness = torch.zeros(self._room)
        self._sizes: list[tuple[int, int]] = []
        self._counts: list[int] = []
        self._end = 0

    def add(self, grid: Tensor, inward: Tensor, cells: Tensor) -> None:
        """Takes some cells of the next image: of (height, width, D) features and (height, width) inwardness."""
        if not len(self._features):  # room that is not used takes no memory
            self._features = torch.empty(self._room, grid.shape[-1])
        here = slice(self._end, self._end + len(cells))
        self._features[here] = grid.flatten(0, 1)[cells]
        self._inwardness[here] = inward.flatten()[cells]
        self._cells[here] = cells.int()
        self._sizes.append((grid.shape[0], grid.shape[1]))
        self._counts.append(len(cells))
        self._end += len(cells)

    def sample(self) -> Sample:
        counts = torch.tensor(self._counts)
        heights, widths = torch.tensor(self._sizes, dtype=torch.int32).repeat_interleave(counts, dim=0).unbind(dim=1)
        images = self._chosen.repeat_interleave(counts)
        places = PatchPlaces.of_cells(self._cells[: self._end], heights, widths, images, self._inwardness[: self._end])
        return Sample(self._features[: self._end], places)
