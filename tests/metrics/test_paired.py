"""Paired differences over seeds, and Holm's correction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from partcraft_lit.metrics.paired import holm, paired_difference


def test_by_hand():
    found = paired_difference([[3.0, 1.0], [5.0, 3.0], [4.0, 2.0]], [[1.0, 1.0], [2.0, 2.0], [2.0, 1.0]])
    # seeds differ by 1, 2 and 1.5: mean 1.5, deviation 0.5, t = 1.5 / (0.5 / sqrt(3)) = 5.196
    assert found.mean == 1.5 and found.seeds == 3
    assert found.effect == pytest.approx((1 - 3 / 7) * 3)
    assert found.p_value == pytest.approx(0.0351, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((1.5 - 4.3027 * 0.288675, 1.5 + 4.3027 * 0.288675), abs=1e-4)


def test_agrees_with_scipy_and_changes_sign_with_the_order():
    draws = np.random.default_rng(0)
    a, b = draws.standard_normal((2, 10, 7))
    found, back = paired_difference(a.tolist(), b.tolist(), 0.9), paired_difference(b.tolist(), a.tolist(), 0.9)
    expected = stats.ttest_rel(a.mean(1), b.mean(1))
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found[1:3] == pytest.approx(tuple(expected.confidence_interval(0.9)))
    assert (back.mean, back.low, back.high, back.effect) == pytest.approx(
        (-found.mean, -found.high, -found.low, -found.effect)
    )


@pytest.mark.parametrize("seeds", [3, 10])
def test_equal_methods_differ_in_one_case_of_twenty(seeds):
    draws = np.random.default_rng(seeds)
    small = [paired_difference(*draws.standard_normal((2, seeds, 5)).tolist()).p_value < 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(small) < 0.07


def test_one_seed_tests_nothing_and_equal_differences_no_more_than_their_signs():
    one = paired_difference([[1.0] * 50], [[0.0] * 50])
    assert one.mean == 1 and one.seeds == 1 and all(math.isnan(value) for value in one[1:5])
    three = paired_difference([[1.0]] * 3, [[0.0]] * 3)
    assert three.p_value == 0.25 and three.effect == math.inf
    nothing = paired_difference([[1.0]] * 3, [[1.0]] * 3)
    assert (nothing.p_value, nothing.effect) == (1, 0)


def test_holm_by_hand():
    # sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, never falling, and the one that was not tested does not count
    assert holm([0.04, 0.01, math.nan, 0.03, 0.02]) == pytest.approx([0.06, 0.04, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_keeps_false_alarms_of_a_whole_table_rare():
    draws = np.random.default_rng(1)
    alarms = [min(holm(draws.random(40).tolist())) < 0.05 for _ in range(2000)]
    assert 0.03 < np.mean(alarms) < 0.065


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"images per seed: \[2\] and \[1\]"):
        paired_difference([[1.0, 2.0]], [[1.0]])
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        paired_difference([[1.0]], [[1.0]], level=95)
