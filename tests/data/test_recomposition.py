"""Pasted parts, by hand on small grids."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import ABSENT
from partcraft_lit.data.recomposition import NOWHERE, View, recompose

HEAD, BODY = 1, 2


def view(rows: list[str], value: float, codes: list[int]) -> View:
    """A view whose labels are the digits of ``rows`` and whose latents are ``value`` and the column."""
    label_map = torch.tensor([[int(cell) for cell in row] for row in rows], dtype=torch.uint8)
    columns = torch.arange(label_map.shape[1]).float().expand(label_map.shape)
    latents = torch.stack([torch.full(label_map.shape, value), columns])
    return View(latents, label_map, torch.tensor(codes), torch.ones_like(label_map, dtype=torch.bool))


HOST = view(["000000", "001100", "022220", "022220"], 0.0, [0, 3, 4])
#: The same creature two columns to the left, with a head that is a column wider.
DONOR = view(["000000", "111000", "222200", "222200"], 7.0, [1, 5, 6])


def seed_that_replaces(part: int) -> torch.Generator:
    """A generator whose first replacement is of that part."""
    for seed in range(100):
        order = torch.randperm(3, generator=torch_generator(seed)).tolist()
        if next(p for p in order if p) == part:
            return torch_generator(seed)
    raise AssertionError


def test_a_head_takes_the_place_of_a_head() -> None:
    """By hand: centroids of columns 2.5 and 1 lie 1.5 apart, which is 2 columns in round numbers."""
    made = recompose(HOST, lambda turn: [DONOR], 1, 0, seed_that_replaces(HEAD))
    assert made.label_map.tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 2, 2, 2, 2, 0],
        [0, 2, 2, 2, 2, 0],
    ]
    assert made.codes.tolist() == [0, 5, 4]
    assert_close(made.latents[0] == 7.0, made.label_map == HEAD)
    assert made.latents[1, 1].tolist() == [0, 1, 0, 1, 2, 5], "the donor's own columns, in a row"
    assert bool(made.counts.all())
    assert HOST.codes.tolist() == [0, 3, 4] and not HOST.latents[0].any(), "the host is not changed"


def test_what_the_old_part_leaves_bare_and_the_seam_do_not_count() -> None:
    small = view(["000000", "000100", "022220", "022220"], 7.0, [1, 5, 6])
    made = recompose(HOST, lambda turn: [small], 1, 0, seed_that_replaces(HEAD))
    assert made.label_map[1].tolist() in ([0, 0, 1, NOWHERE, 0, 0], [0, 0, NOWHERE, 1, 0, 0])
    assert_close(made.counts, made.label_map != NOWHERE)
    with_seam = recompose(HOST, lambda turn: [DONOR], 1, 1, seed_that_replaces(HEAD))
    assert with_seam.counts.tolist() == [
        [True] + [False] * 5,
        [True] + [False] * 5,
        [True] + [False] * 5,
        [True] * 6,
    ]


def test_the_candidate_that_fits_gives_its_part() -> None:
    mirrored = view(["000000", "000111", "002222", "002222"], 9.0, [1, 8, 6])
    turned = view(["000000", "111000", "002222", "002222"], 5.0, [1, 9, 6])  # looks the other way
    for candidates in ([turned, mirrored], [mirrored, turned]):
        made = recompose(HOST, lambda turn, given=candidates: given, 1, 0, seed_that_replaces(HEAD))
        assert made.codes.tolist() == [0, 8, 4]


def test_nothing_to_paste_is_the_host_itself() -> None:
    without = view(["000000", "000000", "222200", "222200"], 7.0, [1, ABSENT, 6])
    assert recompose(HOST, lambda turn: [without], 1, 1, seed_that_replaces(HEAD)) is HOST
    alone = view(["0000", "0000"], 0.0, [0, ABSENT, ABSENT])
    assert recompose(alone, lambda turn: [DONOR], 2, 1, torch_generator(0)) is alone


def test_several_parts_come_from_several_images() -> None:
    donors = [DONOR, view(["000000", "111000", "222200", "222200"], 8.0, [1, 7, 9])]
    codes = set()
    for seed in range(40):
        made = recompose(HOST, lambda turn: [donors[turn]], 2, 0, torch_generator(seed))
        codes.add(tuple(made.codes.tolist()))
        assert set(made.label_map.unique().tolist()) <= {0, 1, 2, NOWHERE}
    assert {(0, 5, 4), (0, 3, 6), (0, 5, 9), (0, 7, 6)} == codes
