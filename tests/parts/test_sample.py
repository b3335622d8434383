"""A sample of patches is the same however it is drawn."""

from __future__ import annotations

import functools
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
    settings = {"seed": 0, "batch_size": 5, "store": None, "progress": lambda *told: None} | others
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


@pytest.fixture(scope="module")
def together(creatures, meaningful, tmp_path_factory):
    """Discovers the parts of images as several processes of a run; what each found, and how many images each read.

    The network's answer depends on the other images of its batch, as a real one's does in the last bit.
    """
    context = multiprocessing.get_context("fork")

    class Uneven(meaningful):
        def __call__(self, images):
            time.sleep(0.004 * len(images))
            return [grid + 1e-4 * place for place, grid in enumerate(super().__call__(images))]

    def work(rank: int, world: int, number: int, store: Path, dies_at: int | None, start: Any, found_by: Any) -> None:
        os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        images, features = creatures(number, sizes=SIZES), Uneven()

        def progress(stage: str, done: int, total: int) -> None:
            if dies_at is not None and features.calls >= dies_at:
                os._exit(9)

        settings = {"M": 2, "K": 3, "batch_size": 4, "max_patches": 200, "nredo": 1}
        start.wait(timeout=60)
        found = discover(images, features, store=Store(store), progress=progress, **settings)
        maps = [label_map.tolist() for label_map in found.label_maps]
        same = [found.dictionary.hash, maps, found.codes.tolist(), found.part_features.tolist()]
        found_by.put((rank, same, features.calls))

    @functools.cache
    def run(world: int, number: int = 25, ranks: tuple[int, ...] = (), dies: int | None = None, dies_at: int = 0):
        ranks = ranks or tuple(range(world))
        found_by, start, store = context.Queue(), context.Barrier(len(ranks)), tmp_path_factory.mktemp("store")
        started = [
            context.Process(
                target=work, args=(rank, world, number, store, dies_at if rank == dies else None, start, found_by)
            )
            for rank in ranks
        ]
        for process in started:
            process.start()
        found = [found_by.get(timeout=60) for rank in ranks if rank != dies]
        for process in started:
            process.join(timeout=60)
        return {rank: same for rank, same, _ in found}, {rank: calls for rank, _, calls in found}

    return run


def test_processes_share_both_passes_and_find_what_one_finds(together):
    alone, calls = together(1)
    assert calls == {0: 25}
    two, calls = together(2)
    assert two == {0: alone[0], 1: alone[0]}
    assert 25 <= sum(calls.values()) <= 25 + 2 * 4, "each pass looks at an image once, but where the two meet"
    assert max(calls.values()) < 25
    three, calls = together(3)
    assert three == dict.fromkeys(range(3), alone[0])
    assert sum(calls.values()) < 2 * 25


@pytest.mark.parametrize("dies_at", (4, 8))  # images that it has read
def test_the_others_do_the_share_of_a_process_that_dies(together, dies_at):
    alone, _ = together(1)
    assert together(3, dies=1, dies_at=dies_at)[0] == {0: alone[0], 2: alone[0]}


def test_one_of_two_alone_does_all(together):
    assert together(2, ranks=(1,))[0][1] == together(1)[0][0]


def test_processes_share_more_images_than_the_sample_looks_at(together):
    alone, calls = together(1, number=210)
    assert calls == {0: 200 + 210}
    assert together(2, number=210)[0] == {0: alone[0], 1: alone[0]}
