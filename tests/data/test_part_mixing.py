"""Swapped, dropped and degraded parts; and that a sample stays a function of (seed, number)."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.config import compose as config
from partcraft_lit.config.factories import settings_of
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import ABSENT
from partcraft_lit.data.part_mixing import PartMixing, check_mixing, degrade, drop_parts, swap_codes
from partcraft_lit.data.recomposition import View
from partcraft_lit.data.settings import MixSettings
from partcraft_lit.losses.objective import DiffusionObjective
from partcraft_lit.runs.settings import TrainSettings

OFF = MixSettings(recompose=0.0, most_parts=2, candidates=2, seam=1, swap=0.0, drop=0.0, degrade=0.0)
LABELS = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 0], [2, 2, 2, 0]], dtype=torch.uint8)
HOST = View(torch.ones(2, 3, 4), LABELS, torch.tensor([0, 3, 4]), torch.ones(3, 4, dtype=torch.bool))
CODES = torch.tensor([[0, 3, 4], [1, 5, 6], [2, ABSENT, 7]])


def test_swapped_parts_do_not_count_and_one_is_never_swapped() -> None:
    kept = Counter()
    for seed in range(300):
        made = swap_codes(HOST, CODES, torch_generator(seed))
        changed = made.codes != HOST.codes
        assert_close(made.counts, ~changed[HOST.label_map.long()])
        assert torch.equal(made.latents, HOST.latents) and torch.equal(made.label_map, HOST.label_map)
        assert all(int(code) in CODES[:, part] and code != ABSENT for part, code in enumerate(made.codes))
        kept[int(changed.sum())] += 1
    assert kept.keys() == {0, 1, 2} and kept[2] > 20, (
        "of three parts one or two are drawn; a draw may be one's own code"
    )


def test_dropped_parts_leave_the_caption_and_do_not_count() -> None:
    sizes = Counter()
    for seed in range(300):
        made = drop_parts(HOST, torch_generator(seed))
        gone = made.codes == ABSENT
        assert_close(made.counts, ~gone[HOST.label_map.long()])
        sizes[int((~gone).sum())] += 1
    assert sizes.keys() == {1, 2} and abs(sizes[1] - 150) < 45  # five standard deviations
    only = dataclasses.replace(HOST, codes=torch.tensor([3, ABSENT, ABSENT]), label_map=torch.zeros_like(LABELS))
    assert drop_parts(only, torch_generator(0)).codes.tolist() == [3, ABSENT, ABSENT]


def test_degraded_latents_are_those_that_do_not_count() -> None:
    dropped = drop_parts(HOST, torch_generator(1))
    made = degrade(dropped, 0.5, torch_generator(2))
    moved = (made.latents != dropped.latents).all(dim=0)
    assert_close(moved, ~dropped.counts)
    many = torch.cat([(degrade(dropped, 0.5, torch_generator(n)).latents - HOST.latents)[:, moved] for n in range(200)])
    assert abs(float(many.std()) - 0.5) < 0.02


def test_degradation_stays_and_then_fades() -> None:
    """MagicTailor's 1 - (d / D)^32, by hand."""
    mixing = PartMixing(dataclasses.replace(OFF, degrade=0.5), total_samples=100)
    assert mixing.strength(0) == 0.5 and mixing.strength(100) == mixing.strength(120) == 0.0
    assert mixing.strength(50) == pytest.approx(0.5, abs=1e-9)
    assert mixing.strength(95) == pytest.approx(0.5 * (1 - 0.95**32))


def test_each_change_has_a_stream_of_its_own() -> None:
    """Switched on alone or with others, the same samples are changed in the same way."""

    def made(number: int, **on: float):
        mixing = PartMixing(dataclasses.replace(OFF, **on), total_samples=1000)
        return mixing(HOST, number, lambda turn, candidate: HOST, CODES, lambda p: torch_generator(0, p, number))

    for number in range(60):
        plain, swapped, both = made(number), made(number, swap=0.5), made(number, swap=0.5, drop=0.5)
        assert plain is HOST
        shown = both.codes != ABSENT
        assert torch.equal(both.codes[shown], swapped.codes[shown])
    shares = [sum(made(number, swap=share) is not HOST for number in range(200)) for share in (0.25, 1.0)]
    assert 25 < shares[0] < 75 and shares[1] == 200


def test_shifted_timesteps_by_hand() -> None:
    """u -> 3 u / (1 + 2 u) has its median at 3/4; without a shift the draws are those of ``torch.randint``."""
    objective = DiffusionObjective(torch.ones(1000), "epsilon")
    drawn = torch.tensor([objective.shifted(3.0).draw_timestep(torch_generator(n)) for n in range(2000)])
    assert drawn.min() >= 0 and drawn.max() < 1000
    assert abs(float(drawn.double().median()) - 750) < 25
    for n in range(20):
        plain = int(torch.randint(1000, (), generator=torch_generator(n)))
        assert objective.shifted(1.0).draw_timestep(torch_generator(n)) == plain


def test_settings_that_do_not_go_together() -> None:
    def check(*overrides: str) -> None:
        settings = settings_of(TrainSettings, config.plain(config.compose("train", list(overrides))))
        check_mixing(settings.data, settings.loss)

    check("data.crops=encode", "data.mix.swap=0.5")
    check("method=partcraft_features")
    for override in ("data.mix.recompose=0.5", "data.mix.degrade=0.5", "loss.predictor=0.1"):
        with pytest.raises(UserError, match=r"work on cached latents, and data\.crops=encode"):
            check("data.crops=encode", override)
    with pytest.raises(UserError, match=r"data\.scale_variants=4 and data\.mix both"):
        check("data.scale_variants=4", "data.mix.swap=0.5")
    with pytest.raises(UserError, match=r"data\.empty_captions=0\.1: with loss\.region=prompted"):
        check("data.empty_captions=0.1", "loss.region=prompted")
