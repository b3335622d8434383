"""From scores of images to the cells of a table: means, intervals, and which differences are more than chance."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from partcraft_lit.callbacks.metrics_log import read_metrics
from partcraft_lit.commands.table.settings import ColumnSettings
from partcraft_lit.evaluation.image_scores import FILE_NAME, Row, read_rows, stored_scores
from partcraft_lit.metrics.bootstrap import interval
from partcraft_lit.metrics.paired import Difference, holm, paired_difference

#: A difference to the best row counts from here on, after correction for all comparisons of the table.
SIGNIFICANCE = 0.05

#: One list per seed, one value per image (or one per run).
Values = list[list[float]]


@dataclass(frozen=True)
class RunScores:
    """What stands of one run.

    Attributes:
        seed: of its training.
        folder: of the run.
        rows: of its images.
        numbers: of the run as a whole.
        parameters: that train; None if unknown.
        seconds: of training; None if unknown.
    """

    seed: int
    folder: Path
    rows: list[Row]
    numbers: dict[str, float]
    parameters: int | None
    seconds: float | None


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        mean, low, high: of the values; NaN where there is none.
        seeds: runs.
        images: images of each, or 1 for numbers of whole runs.
        best: whether no row of the column is better.
        difference: to the best row, paired over seeds; None for that row itself, and where the two cannot be paired.
        p_corrected: of that difference, after Holm's correction for all comparisons of the table; None before it, and
            where nothing was tested.
        distinct: whether the difference between the best row and this one is more than chance after correction; of the
            best row itself: between it and every other row.
        reported: what the paper gives.
    """

    mean: float
    low: float
    high: float
    seeds: int
    images: int
    best: bool = False
    difference: Difference | None = None
    p_corrected: float | None = None
    distinct: bool = False
    reported: float | None = None

    @property
    def ties(self) -> bool:
        """Whether nothing tells it from the best row, or the best row from some other."""
        return math.isfinite(self.mean) and not self.distinct


def read_run(seed: int, folder: Path, evaluation: Path) -> RunScores:
    """Reads what training and scoring have left.

    Raises:
        UserError: if the scores of the images are missing or damaged.
    """
    rows = read_rows(evaluation / FILE_NAME)
    logged = {key: points[-1][1] for key, points in read_metrics(folder / "metrics.jsonl").items()}
    # Those with a protocol may be of other images than the ones that are compared.
    numbers = {key: value for key, value in logged.items() if "@" not in key}
    numbers |= stored_scores(folder, evaluation)
    costs = _json(folder / "costs.json")
    parameters = costs.get("trainable_parameters")
    return RunScores(seed, folder, rows, numbers, parameters, costs.get("train_seconds"))


def values_of(runs: Sequence[RunScores], column: ColumnSettings) -> Values:
    """The column's values, images in one order for every run; empty if a run has none of them."""
    if column.per == "run":
        keys = keys_of(column)
        found = [column.times * statistics.fmean(run.numbers.get(key, math.nan) for key in keys) for run in runs]
        return [[value] for value in found] if all(math.isfinite(value) for value in found) else []
    values: Values = []
    for run in runs:
        of_run = [row for protocol in column.protocols for row in run.rows if row["protocol"] == protocol]
        values.append([column.times * float(row.get(column.metric, math.nan)) for row in of_run])
    return values if all(any(map(math.isfinite, of_run)) for of_run in values) else []


def keys_of(column: ColumnSettings) -> list[str]:
    """Keys of ``scores.json`` over which a column with ``per="run"`` is a mean."""
    return [f"{column.metric}@{p.replace(' ', '_')}" for p in column.protocols] or [column.metric]


def compare(
    rows: Mapping[str, Sequence[RunScores]],
    column: ColumnSettings,
    reported: Mapping[str, float],
    level: float,
    resamples: int,
) -> dict[str, Cell]:
    """One column of a table.

    Images that have no value under some row (nothing was asked for) are left out of all rows, so that every row is
    averaged over the same images.

    Args:
        rows: row -> its runs, in the order of seeds.
        column: what is compared.
        reported: row -> value of the paper.
        level: share of intervals that should hold the true mean.
        resamples: of the bootstrap.
    """
    values = _without_gaps({name: values_of(runs, column) for name, runs in rows.items()})
    means = {name: interval(found, level, resamples) for name, found in values.items() if found}
    sign = 1 if column.higher else -1
    best = max(means, key=lambda name: sign * means[name].mean, default=None)
    cells = {}
    for name in rows:
        said = reported.get(name)
        if name not in means or best is None:
            cells[name] = Cell(math.nan, math.nan, math.nan, 0, 0, reported=said)
            continue
        found = values[name]
        difference = None if name == best else _difference(rows[name], found, rows[best], values[best], level)
        cells[name] = Cell(*means[name], len(found), len(found[0]), name == best, difference, reported=said)
    return cells


def corrected(columns: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, Cell]]:
    """The cells of a whole table, column -> row -> cell, with p-values corrected for all of its comparisons."""
    places = [(title, row) for title, cells in columns.items() for row in cells]
    differences = [columns[title][row].difference for title, row in places]
    p_values = holm([math.nan if difference is None else difference.p_value for difference in differences])
    of_place = {place: p for place, p in zip(places, p_values, strict=True) if math.isfinite(p)}
    done: dict[str, dict[str, Cell]] = {title: {} for title in columns}
    for title, row in places:
        cell, p_value = columns[title][row], of_place.get((title, row))
        others = [name for name, other in columns[title].items() if math.isfinite(other.mean) and name != row]
        asked = others if cell.best else [row]
        distinct = bool(others) and all(of_place.get((title, name), 1.0) < SIGNIFICANCE for name in asked)
        done[title][row] = replace(cell, p_corrected=p_value, distinct=distinct)
    return done


def _difference(
    runs: Sequence[RunScores], found: Values, best_runs: Sequence[RunScores], best: Values, level: float
) -> Difference | None:
    """Over the seeds that both have."""
    ours, theirs = ({run.seed: row for run, row in zip(*pair)} for pair in ((runs, found), (best_runs, best)))
    common = [seed for seed in ours if seed in theirs and len(ours[seed]) == len(theirs[seed])]
    if not common:
        return None
    return paired_difference([ours[seed] for seed in common], [theirs[seed] for seed in common], level)


def _without_gaps(values: Mapping[str, Values]) -> dict[str, Values]:
    lengths = {len(row) for found in values.values() for row in found}
    if len(lengths) == 1:
        kept = [
            place
            for place in range(lengths.pop())
            if all(math.isfinite(row[place]) for found in values.values() for row in found)
        ]
        whole = {name: [[row[place] for place in kept] for row in found] for name, found in values.items()}
    else:
        whole = {n: [[v for v in row if math.isfinite(v)] for row in found] for n, found in values.items()}
    return {name: found if all(found) else [] for name, found in whole.items()}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
