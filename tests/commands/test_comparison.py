"""From scores of images to cells."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from partcraft_lit.commands.table.comparison import RunScores, compare, corrected, values_of
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
    assert (cell.seeds, cell.images, cell.best, cell.difference, cell.reported) == (2, 3, True, None, 0.4)


def of_seeds(values, shifts) -> list[RunScores]:
    return [run([value + shift for value in values], seed=seed) for seed, shift in enumerate(shifts)]


def test_the_best_row_and_those_that_tie_with_it():
    values, noise = [0.8, 0.9, 0.7], [0.02, -0.01, 0.0, 0.015, -0.02]
    rows = {
        "good": of_seeds(values, noise),
        "alike": of_seeds(values, [0.0, 0.01, -0.02, 0.005, -0.005]),
        "bad": of_seeds([value - 0.5 for value in values], [0.0] * 5),
    }
    cells = corrected({"EMR": compare(rows, EMR, {}, 0.95, 200)})["EMR"]
    assert cells["good"].best and cells["good"].ties and cells["alike"].ties and not cells["bad"].ties
    lowest = ColumnSettings("emr/all", ("reconstruction",), higher=False)
    cells = corrected({"EMR": compare(rows, lowest, {}, 0.95, 200)})["EMR"]
    assert cells["bad"].best and cells["bad"].distinct and not cells["good"].ties and not cells["alike"].ties


def test_every_comparison_of_the_table_counts_in_the_correction():
    rows = {"a": of_seeds([0.5], [0.0, 0.1, 0.05]), "b": of_seeds([0.4], [0.0, 0.13, 0.04])}
    one = compare(rows, EMR, {}, 0.95, 200)
    alone, among = corrected({"EMR": one}), corrected({str(i): one for i in range(4)})
    p_value = one["b"].difference.p_value
    assert alone["EMR"]["b"].p_corrected == p_value
    assert [cells["b"].p_corrected for cells in among.values()] == pytest.approx([min(1, 4 * p_value)] * 4)
    assert 0.01 < p_value < 0.05 and alone["EMR"]["a"].distinct and not among["0"]["a"].distinct


def test_one_seed_shows_no_difference():
    cells = corrected({"EMR": compare({"a": [run([1.0] * 50)], "b": [run([0.0] * 50)]}, EMR, {}, 0.95, 200)})["EMR"]
    assert cells["a"].best and cells["a"].ties and cells["b"].ties and cells["b"].p_corrected is None


def test_pictures_without_a_value_leave_all_rows():
    rows = {"a": [run([1.0, math.nan, 0.0])], "b": [run([0.5, 0.5, math.nan])]}
    cells = compare(rows, EMR, {}, 0.95, 200)
    assert (cells["a"].mean, cells["b"].mean, cells["a"].images) == (1.0, 0.5, 1)


def test_a_row_without_any_value_leaves_the_others_alone():
    """Of two families of creatures one may have an oracle: its rows are compared, the others have no cell."""
    rows = {"a": [run([1.0, 0.0])], "b": [run([0.5, 0.5])], "c": [run([math.nan, math.nan])]}
    cells = compare(rows, EMR, {}, 0.95, 200)
    assert (cells["a"].mean, cells["b"].mean, cells["a"].images) == (0.5, 0.5, 2)
    assert math.isnan(cells["c"].mean) and cells["c"].seeds == 0


def test_a_missing_seed_is_compared_over_the_common_ones():
    rows = {"a": [run([1.0] * 8), run([0.5] * 8, seed=1), run([0.75] * 8, seed=2)]}
    rows["b"] = [run([0.25] * 8, seed=2), run([0.25] * 8, seed=1)]
    cells = compare(rows, EMR, {}, 0.95, 200)
    assert cells["b"].seeds == 2 and cells["b"].difference[:1] == (-0.375,) and cells["b"].difference.seeds == 2


def test_protocols_are_pooled_and_numbers_of_runs_are_one_value():
    one = run([1.0, 0.0], protocol="2 species")
    both = RunScores(0, Path("x"), one.rows + run([0.5], protocol="3 species").rows, {"fid": 12.0}, None, None)
    assert values_of([both], ColumnSettings("emr/all", ("2 species", "3 species"))) == [[1.0, 0.0, 0.5]]
    assert values_of([both], ColumnSettings("fid", (), per="run")) == [[12.0]]
    assert values_of([both], ColumnSettings("kid", (), per="run")) == []
    nothing = compare({"a": [both]}, ColumnSettings("kid", (), per="run"), {"a": 3.0}, 0.95, 200)["a"]
    assert math.isnan(nothing.mean) and nothing.reported == 3.0 and not nothing.best
