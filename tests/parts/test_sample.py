"""A sample of patches is the same however it is drawn."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from discovery import discover
from partcraft_lit.core.store import Store
from partcraft_lit.parts.foreground import PatchPlaces
from partcraft_lit.parts.on_disk import FeatureCache
from partcraft_lit.parts.sample import Sample, sample_patches

SIZES = ((64, 64), (64, 96), (128, 64))


def drawn(source: Any, features: Any, max_patches: int, **others: Any) -> Sample:
    settings = {"seed": 0, "batch_size": 5, "progress": lambda *told: None} | others
    with FeatureCache(1 << 20) as cache:
        return sample_patches(source, features, max_patches=max_patches, cache=cache, **settings)


def equal(one: Sample, other: Sample) -> bool:
    pairs = zip(vars(one.places).values(), vars(other.places).values(), strict=True)
    return torch.equal(one.features, other.features) and all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("max_patches", (7, 40, 24 * 20, 100_000))  # images left out, few of each, all of them
def test_patches_are_those_of_their_places(creatures, meaningful, max_patches):
    source, features = creatures(24, sizes=SIZES), meaningful()
    sample = drawn(source, features, max_patches)
    quota = max(max_patches // 24, 1)
    grids = {index: features([source.image(index)])[0] for index in range(24)}
    expected = sum(min(quota, grid.shape[:2].numel()) for grid in grids.values()) if max_patches >= 24 else max_patches
    assert len(sample.features) == len(sample.places.image) == expected
    assert (sample.places.image.diff() >= 0).all(), "in the order of the images"
    for row, index in enumerate(sample.places.image.tolist()):
        height, width, _ = grids[index].shape
        at = [
            round(float((place[row] + 1) / 2 * side - 0.5))
            for place, side in ((sample.places.rows, height), (sample.places.cols, width))
        ]
        assert torch.equal(sample.features[row], grids[index][at[0], at[1]])
        assert bool(sample.places.border[row]) == (at[0] in (0, height - 1) or at[1] in (0, width - 1))
    pairs = set(zip(*(vars(sample.places)[name].tolist() for name in ("image", "rows", "cols")), strict=True))
    assert len(pairs) == expected, "no patch twice"


def test_cells_of_a_grid_are_counted_row_by_row():
    picked = PatchPlaces.of_cells(torch.tensor([5]), torch.tensor([2]), torch.tensor([4]), torch.tensor([3]))
    assert (picked.rows.item(), picked.cols.item(), picked.image.item()) == (0.5, -0.25, 3)


def test_the_size_of_batches_does_not_matter(creatures, meaningful):
    source, features = creatures(12, sizes=SIZES), meaningful()
    alone = drawn(source, features, 100)
    assert equal(drawn(source, features, 100, batch_size=1), alone)
    assert equal(drawn(source, features, 100, batch_size=12), alone)
    assert not equal(drawn(source, features, 100, seed=1), alone)


def test_processes_that_discover_together_find_the_very_same_parts(creatures, meaningful, tmp_path: Path):
    """Also with a network whose answer depends on the other images of its batch: else the ranks of a run part ways."""
    context = multiprocessing.get_context("fork")
    found_by, together = context.Queue(), context.Barrier(2)

    class Uneven(meaningful):
        def __call__(self, images):
            time.sleep(0.002 * len(images))
            return [grid + 1e-4 * place for place, grid in enumerate(super().__call__(images))]

    def work(rank: int) -> None:
        os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        together.wait(timeout=60)
        found = discover(creatures(25), Uneven(), M=2, K=3, batch_size=4, store=Store(tmp_path))
        found_by.put([found.dictionary.hash, found.codes.tolist()])

    workers = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    one, other = (found_by.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join()
    assert one == other
