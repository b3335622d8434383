"""Intervals and p-values: by hand, against the textbook's formula, and as laws."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from partcraft_lit.metrics.bootstrap import interval


def normal(seed: int, seeds: int, images: int, mean: float = 0.0) -> list[list[float]]:
    return (mean + np.random.default_rng(seed).standard_normal((seeds, images))).tolist()


def test_mean_of_means_counts_every_seed_alike():
    assert interval([[1.0], [2.0, 4.0, 6.0]]).mean == 2.5


def test_two_images_by_hand():
    # Resampled means are 0, 1/2, 1 with chances 1/4, 1/2, 1/4: each tail is wider than 2.5 %.
    assert interval([[0.0, 1.0]]) == (0.5, 0.0, 1.0)
    assert interval([[0.0, 1.0]], level=0.4) == (0.5, 0.5, 0.5)


def test_all_resamples_of_a_small_table_are_enumerated():
    """Quantiles of many draws come near those of the exact distribution: seeds, then shared images."""
    table = np.array([[0.0, 3.0, 1.0], [2.0, 8.0, 5.0]])
    exact = [
        table[list(seeds)][:, list(images)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for images in itertools.product(range(3), repeat=3)
    ]
    found = interval(table.tolist(), level=0.7, resamples=20_000)
    assert found.mean == pytest.approx(table.mean())
    assert found[1:] == pytest.approx(np.quantile(exact, [0.15, 0.85]), abs=0.05)


def test_one_seed_agrees_with_the_normal_approximation():
    values = normal(1, 1, 400)
    found = interval(values)
    half = 1.96 * np.std(values[0]) / 20
    assert found.high - found.mean == pytest.approx(half, rel=0.1)
    assert found.mean - found.low == pytest.approx(half, rel=0.1)


def test_shared_difficulty_of_images_does_not_average_out_over_seeds():
    images = np.random.default_rng(0).standard_normal(100)
    alike = interval([images.tolist()] * 5)
    alone = interval([images.tolist()])
    assert alike.high - alike.low == pytest.approx(alone.high - alone.low, rel=0.1)
    apart = interval(normal(0, 5, 100))
    assert apart.high - apart.low < 0.85 * (alone.high - alone.low)


def test_unlike_seeds_widen_the_interval():
    same, unlike = [[0.0, 1.0] * 50] * 3, [[0.0, 1.0] * 50, [1.0, 2.0] * 50, [2.0, 3.0] * 50]
    assert np.ptp(interval(unlike)[1:]) > 3 * np.ptp(interval(same)[1:])


def test_ragged_seeds_are_resampled_each_for_itself():
    values = [[0.0] * 5, [1.0] * 3]
    assert interval(values) == (0.5, 0.0, 1.0)


@pytest.mark.parametrize("images", [20, 80])
def test_coverage_is_near_the_level(images):
    held = [low <= 0 <= high for _, low, high in (interval(normal(s, 1, images), resamples=200) for s in range(150))]
    assert 0.88 <= np.mean(held) <= 0.985


def test_a_single_number_has_no_interval():
    found = interval([[0.25]])
    assert found.mean == 0.25
    assert np.isnan(found.low) and np.isnan(found.high)


def test_draws_are_stateless():
    values = normal(3, 2, 30)
    assert interval(values, seed=4) == interval(values, seed=4) != interval(values, seed=5)


def test_shift_and_scale_carry_over():
    values = np.array(normal(3, 2, 30))
    assert interval((2 * values + 7).tolist()) == pytest.approx(2 * np.array(interval(values.tolist())) + 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "one list per seed"),
        ([[1.0], []], "at least one number"),
        ([[1.0, float("nan")]], r"values\[0\]\[1\] is nan"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        interval(values)


def test_other_mistakes_are_named():
    with pytest.raises(ValueError, match="level must lie between 0 and 1, got 95"):
        interval([[1.0, 2.0]], level=95)
    with pytest.raises(ValueError, match="resamples must be at least 1"):
        interval([[1.0, 2.0]], resamples=0)
