"""From scores of pictures to cells."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from partcraft_lit.commands.table.comparison import RunScores, compare, values_of
from partcraft_lit.commands.table.settings import ColumnSettings
from partcraft_lit.metrics.bootstrap import interval

EMR = ColumnSettings("emr/all", ("reconstruction",))


def run(values, seed=0, protocol="reconstruction", metric="emr/all", numbers=None) -> RunScores:
    rows = [{"protocol": protocol, "index": str(index), metric: value} for index, value in enumerate(values)]
    return RunScores(seed, Path("x"), rows, numbers or {}, 10, 1.0)


def test_a_cell_is_the_mean_over_seeds_and_pictures():
    runs = [run([0.0, 1.0, 0.5]), run([1.0, 1.0, 0.5], seed=1)]
    cell = compare({"a": runs}, EMR, {"a": 0.4}, 0.95, 200)["a"]
    assert cell.mean == pytest.approx((0.5 + 2.5 / 3) / 2)
    assert (cell.low, cell.high) == interval([[0.0, 1.0, 0.5], [1.0, 1.0, 0.5]], 0.95, 200)[1:]
    assert (cell.seeds, cell.images, cell.best, cell.p_value, cell.reported) == (2, 3, True, None, 0.4)


def test_the_best_row_and_those_that_tie_with_it():
    good = [0.8, 0.9, 0.7, 0.95, 0.85, 0.75, 0.9, 0.8]
    noisy = [value + (0.05 if i % 2 else -0.06) for i, value in enumerate(good)]
    bad = [value - 0.5 for value in good]
    rows = {"good": [run(good)], "noisy": [run(noisy)], "bad": [run(bad)]}
    cells = compare(rows, EMR, {}, 0.95, 200)
    assert cells["good"].best and cells["noisy"].ties and not cells["bad"].ties and not cells["good"].ties
    lower = compare(rows, ColumnSettings("emr/all", ("reconstruction",), higher=False), {}, 0.95, 200)
    assert lower["bad"].best and not lower["good"].best


def test_pictures_without_a_value_leave_all_rows():
    rows = {"a": [run([1.0, math.nan, 0.0])], "b": [run([0.5, 0.5, math.nan])]}
    cells = compare(rows, EMR, {}, 0.95, 200)
    assert (cells["a"].mean, cells["b"].mean, cells["a"].images) == (1.0, 0.5, 1)


def test_a_missing_seed_is_compared_over_the_common_ones():
    rows = {"a": [run([1.0] * 8), run([1.0] * 8, seed=1)], "b": [run([0.0] * 8, seed=1)]}
    cells = compare(rows, EMR, {}, 0.95, 200)
    assert cells["b"].seeds == 1 and cells["b"].p_value is not None and cells["b"].p_value < 0.05


def test_protocols_are_pooled_and_numbers_of_runs_are_one_value():
    one = run([1.0, 0.0], protocol="2 species")
    both = RunScores(0, Path("x"), one.rows + run([0.5], protocol="3 species").rows, {"fid": 12.0}, None, None)
    assert values_of([both], ColumnSettings("emr/all", ("2 species", "3 species"))) == [[1.0, 0.0, 0.5]]
    assert values_of([both], ColumnSettings("fid", (), per="run")) == [[12.0]]
    assert values_of([both], ColumnSettings("kid", (), per="run")) == []
    nothing = compare({"a": [both]}, ColumnSettings("kid", (), per="run"), {"a": 3.0}, 0.95, 200)["a"]
    assert math.isnan(nothing.mean) and nothing.reported == 3.0 and not nothing.best
