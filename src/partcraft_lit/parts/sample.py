"""The pass that draws a sample of patches from all images, which foreground and parts are fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from partcraft_lit.core import environment
from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.store import Entry, Store, stable_hash
from partcraft_lit.core.types import ImageSource, PatchFeatures
from partcraft_lit.parts.foreground import PatchPlaces, inwardness
from partcraft_lit.parts.on_disk import FeatureCache
from partcraft_lit.parts.segmentation import Progress, with_features

#: Of the store's entries: the patches drawn from a block of images.
KIND = "patches"


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
    store: Store | None,
    progress: Progress,
) -> Sample:
    """Draws the same number of patches of every image, by (seed, image) alone; in the order of the images.

    Several processes of a run share the images over the store, and each reads the drawn patches of all. The output for
    an image differs in its last bit with the other images of its batch, so batches are fixed blocks of the list.

    Args:
        source: the images.
        features: describes their patches.
        seed: of the draws.
        max_patches: in the sample; of more images than that, as many are looked at, spread evenly.
        batch_size: images given to ``features`` at once.
        cache: takes in the features of the whole images that this process describes, where all images are looked at.
        store: where several processes meet; not used by one alone, or None.
        progress: called with stage, done and total.
    """
    chosen = _spread_evenly(len(source), max_patches)
    quota = max(max_patches // len(chosen), 1)
    blocks = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    drawn = _Drawn(chosen, quota)

    def draw(block: list[int]) -> Entry:
        described = list(with_features(source, features, block, batch_size))
        if len(chosen) == len(source):  # otherwise the blocks of the second pass are others
            for index, _, grid in described:
                cache.put(index, grid)
        return _draw(described, quota, seed)

    def count(done: int, _: int) -> None:
        progress("sample patches", min(done * batch_size, len(chosen)), len(chosen))

    if store is None or environment.position()[1] == 1:
        for number, block in enumerate(blocks):
            drawn.add(draw(block))
            count(number + 1, len(blocks))
        return drawn.sample()
    content = [[source.content_hash(index) for index in block] for block in blocks]
    keys = [stable_hash(KIND, 1, features.hash, seed, quota, hashes, block) for hashes, block in zip(content, blocks)]
    store.fill(KIND, keys, lambda numbers: (draw(blocks[number]) for number in numbers), 1, count)
    for key, block in zip(keys, blocks, strict=True):
        drawn.add(store.get(KIND, key) or draw(block))  # one may have been damaged or pruned since
    return drawn.sample()


def _draw(described: Sequence[tuple[int, Tensor, Tensor]], quota: int, seed: int) -> Entry:
    """Patches of a block of images, from index, pixels and features of each.

    Returns:
        ``features`` (P, D), ``cells`` and ``inwardness`` (P,), all in the order of the images; their grids' ``sizes``
        (images, 2) and ``counts`` of patches (images,).
    """
    sizes = [(grid.shape[0], grid.shape[1]) for _, _, grid in described]
    inward = inwardness([clamp_aspect(pixels) for _, pixels, _ in described], sizes)
    patches, cells, depths = [], [], []
    for (index, _, grid), depth in zip(described, inward, strict=True):
        generator = torch_generator(seed, "patches", index)
        picked = torch.randperm(depth.numel(), generator=generator)[:quota].sort().values
        patches.append(grid.flatten(0, 1)[picked])
        cells.append(picked.int())
        depths.append(depth.flatten()[picked])
    return {
        "features": torch.cat(patches),
        "cells": torch.cat(cells),
        "inwardness": torch.cat(depths),
        "sizes": torch.tensor(sizes, dtype=torch.int32),
        "counts": torch.tensor([len(picked) for picked in cells]),
    }


def _spread_evenly(number: int, most: int) -> list[int]:
    """At most ``most`` image indices, spread evenly."""
    return list(range(number)) if number <= most else [index * number // most for index in range(most)]


class _Drawn:
    """Patches of block after block, in room that is taken once."""

    def __init__(self, chosen: list[int], quota: int) -> None:
        self._chosen, self._room = torch.tensor(chosen), len(chosen) * quota
        self._features = torch.empty(0)
        self._cells = torch.zeros(self._room, dtype=torch.int32)
        self._inwardness = torch.zeros(self._room)
        self._sizes: list[Tensor] = []
        self._counts: list[Tensor] = []
        self._end = 0

    def add(self, block: Entry) -> None:
        """Takes the patches of the next block of images."""
        if not len(self._features):  # room that is not used takes no memory
            self._features = torch.empty(self._room, block["features"].shape[-1])
        here = slice(self._end, self._end + len(block["cells"]))
        self._features[here] = block["features"]
        self._inwardness[here] = block["inwardness"]
        self._cells[here] = block["cells"]
        self._sizes.append(block["sizes"])
        self._counts.append(block["counts"])
        self._end = here.stop

    def sample(self) -> Sample:
        counts = torch.cat(self._counts)
        heights, widths = torch.cat(self._sizes).repeat_interleave(counts, dim=0).unbind(dim=1)
        images = self._chosen.repeat_interleave(counts)
        places = PatchPlaces.of_cells(self._cells[: self._end], heights, widths, images, self._inwardness[: self._end])
        return Sample(self._features[: self._end], places)
