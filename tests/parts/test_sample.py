"""A sample of patches is the same however it is drawn, and several processes draw it together."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from partcraft_lit.parts.discovery import discover
from partcraft_lit.parts.foreground import PatchPlaces
from partcraft_lit.parts.sample import Sample, sample_patches
from partcraft_lit.parts.spool import FeatureSpool
from partcraft_lit.store import Store

SIZES = ((64, 64), (64, 96), (128, 64))


def drawn(source: Any, features: Any, max_patches: int, **others: Any) -> Sample:
    settings = {"seed": 0, "batch_size": 5, "store": None, "progress": lambda *told: None} | others
    with FeatureSpool(1 << 20) as spool:
        return sample_patches(source, features, max_patches=max_patches, spool=spool, **settings)


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
    places = PatchPlaces.of_grid(2, 4, image=3)
    assert places.rows.tolist() == [-0.5] * 4 + [0.5] * 4
    assert places.cols.tolist() == [-0.75, -0.25, 0.25, 0.75] * 2
    picked = PatchPlaces.of_cells(torch.tensor([5]), torch.tensor([2]), torch.tensor([4]), torch.tensor([3]))
    assert (picked.rows.item(), picked.cols.item(), picked.image.item()) == (0.5, -0.25, 3)


def test_the_store_gives_the_same_sample_and_nothing_is_kept_for_one_process(
    creatures, meaningful, tmp_path, monkeypatch
):
    source, features = creatures(12, sizes=SIZES), meaningful()
    alone = drawn(source, features, 100, store=Store(tmp_path))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert equal(drawn(source, features, 100, store=Store(tmp_path), batch_size=3), alone)
    again = meaningful()
    assert equal(drawn(source, again, 100, store=Store(tmp_path)), alone) and again.calls == 0
    for change in ({"seed": 1}, {"max_patches": 60}):
        other = drawn(source, again, **({"max_patches": 100} | change), store=Store(tmp_path))
        assert equal(other, drawn(source, again, **({"max_patches": 100} | change)))


def test_two_processes_describe_each_image_once_between_them(creatures, meaningful, tmp_path: Path):
    alone = discover(creatures(24), meaningful(), num_parts=2, num_codes=3)
    context = multiprocessing.get_context("fork")
    described, together = context.Queue(), context.Barrier(2)

    class Slow(meaningful):
        def __call__(self, images):
            time.sleep(0.01 * len(images))
            return super().__call__(images)

    def work(rank: int) -> None:
        os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        features = Slow()
        together.wait(timeout=60)
        found = discover(creatures(24), features, num_parts=2, num_codes=3, batch_size=2, store=Store(tmp_path))
        same = torch.equal(found.codes, alone.codes) and all(
            torch.equal(*pair) for pair in zip(found.label_maps, alone.label_maps, strict=True)
        )
        described.put((features.calls, same))

    workers = [context.Process(target=work, args=(rank,)) for rank in range(2)]
    for worker in workers:
        worker.start()
    told = [described.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert [same for _, same in told] == [True, True]
    calls = [calls for calls, _ in told]
    assert 24 <= sum(calls) <= 24 + 12 and min(calls) > 0, "a batch or two where they meet, in each pass"
