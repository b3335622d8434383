"""Calibration of judges, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from partcraft_lit.core.types import ABSENT
from partcraft_lit.evaluation.calibration import (
    PartCalibration,
    area_under_curve,
    calibration_of,
    draw_pairs,
)


def test_the_area_counts_pairs():
    same, different = torch.tensor([0.9, 0.5, 0.5]), torch.tensor([0.5, 0.1])
    # of six pairs: 0.9 above both, each 0.5 half above 0.5 and above 0.1
    assert area_under_curve(same, different) == pytest.approx((2 + 1.5 + 1.5) / 6)
    assert math.isnan(area_under_curve(same, different[:0]))


def test_a_part_is_readable_well_above_chance_and_not_by_luck():
    many = calibration_of(torch.linspace(0.5, 1, 100), torch.linspace(0.2, 0.7, 100))
    assert many.readable and many.same == pytest.approx(0.75) and many.different == pytest.approx(0.45)
    assert not PartCalibration(0.64, 0.8, 0.7, 1000, 1000).readable
    assert PartCalibration(0.66, 0.8, 0.7, 1000, 1000).readable
    assert not PartCalibration(0.66, 0.8, 0.7, 10, 10).readable  # two standard errors of chance are 0.26
    assert not PartCalibration(0.66, 0.7, 0.7, 1000, 1000).readable
    assert not calibration_of(torch.tensor([0.9, math.nan]), torch.tensor([math.nan])).readable


def test_scores_lie_between_those_of_real_pairs():
    known = PartCalibration(0.9, 0.8, 0.6, 100, 100)
    found = known.calibrated(torch.tensor([0.6, 0.7, 0.8, 1.0, math.nan]))
    assert found[:4].tolist() == pytest.approx([0, 0.5, 1, 2], abs=1e-6) and found[4].isnan()
    assert bool(PartCalibration(0.5, 0.8, 0.6, 100, 100).calibrated(torch.ones(2)).isnan().all())


def test_pairs_are_of_one_code_and_of_two_and_share_an_image():
    codes = torch.tensor([0, 0, 0, 1, 1, 2, ABSENT])
    same, different = draw_pairs(codes, 3, torch.Generator().manual_seed(0))
    assert len(same) == len(different) == 3
    assert len({frozenset(pair) for pair in same}) == 3
    for (first, second), (again, other) in zip(same, different, strict=True):
        assert codes[first] == codes[second] != ABSENT and first != second
        assert again in (first, second) and codes[other] not in (codes[first], ABSENT)
    assert draw_pairs(codes, 3, torch.Generator().manual_seed(0)) == (same, different)
    assert len(draw_pairs(codes, 100, torch.Generator().manual_seed(0))[0]) == 4  # all that there are
    assert draw_pairs(torch.zeros(4, dtype=torch.long), 3, torch.Generator()) == ([], [])  # nothing to tell apart
    assert draw_pairs(torch.arange(4), 3, torch.Generator()) == ([], [])
