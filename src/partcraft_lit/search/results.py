"""What a search found: its trials as a table, the best of them, and a figure."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from partcraft_lit.core import plotting
from partcraft_lit.core.files import atomic_write
from partcraft_lit.search.space import Interval
from partcraft_lit.search.study import FAILURE, FOLDER, Search

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from optuna.study import Study

#: Trials from which on it can be said what mattered.
_ENOUGH = 4
_STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}
#: A trial that the study has as running, though nobody works on it.
_STOPPED = "stopped"


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        number: from 0.
        state: complete, pruned, failed, stopped (at its time limit, and to go on), running or waiting.
        values: one per objective; empty unless complete.
        params: key -> value.
        note: why it failed, where it was pruned, or what stopped it.
        folder: of its result, relative to that of the search.
        best: whether no other is better in every objective.
    """

    number: int
    state: str
    values: tuple[float, ...]
    params: Mapping[str, Any]
    note: str
    folder: str
    best: bool


def trials_of(search: Search) -> list[Trial]:
    """All trials of a search, the best first; of several objectives, the Pareto front in order of the first."""
    study = search.study
    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    best = {trial.number for trial in study.best_trials} if complete else set()
    found, repeated = [], search.repeated()
    for trial in study.get_trials(deepcopy=False):
        state = _STATES[trial.state.name]
        note = str(trial.user_attrs.get(FAILURE, ""))
        if trial.number in repeated:
            note = f"{note}; again as trial {repeated[trial.number]}"
        if trial.number in search.stopped:
            state, note = _STOPPED, "trainer.max_time"
        if state == "pruned" and trial.last_step is not None:
            note = f"stopped after step {trial.last_step}"
        values = tuple(trial.values or ()) if state == "complete" else ()
        folder = os.path.relpath(search.folder / str(trial.user_attrs.get(FOLDER, "")), search.folder)
        found.append(Trial(trial.number, state, values, dict(trial.params), note, folder, trial.number in best))
    sign = -1 if study.directions[0].name == "MAXIMIZE" else 1
    return sorted(found, key=lambda one: (not one.best, sign * one.values[0] if one.values else math.inf, one.number))


def write_results(search: Search) -> list[Trial]:
    """Writes ``search.csv``, ``search.md`` and, where there is enough to see, ``search.png`` beside the trials."""
    trials = trials_of(search)
    atomic_write(search.folder / "search.csv", _csv(search, trials))
    atomic_write(search.folder / "search.md", _markdown(search, trials))
    if sum(trial.state == "complete" for trial in trials) >= 2:
        with plotting.style():
            plotting.save_figure(search.folder / "search.png", _figure(search, trials), "Search")
    return trials


def progress(search: Search, number: int) -> str:
    """A line for the end of a trial."""
    trials = trials_of(search)
    trial = next(trial for trial in trials if trial.number == number)
    done = sum(one.state in ("complete", "pruned", "failed") for one in trials) - len(search.repeated())
    values = ", ".join(f"{name}={value:.6g}" for name, value in zip(search.objectives, trial.values)) or trial.state
    best = next((one for one in trials if one.best), None)
    so_far = "" if best is None else f"; best so far: trial {best.number}, {search.objectives[0]}={best.values[0]:.6g}"
    return f"Trial {number} ({done} of {search.settings.n_trials}): {values}{so_far}"


def summary(search: Search, trials: Sequence[Trial]) -> str:
    """Sentences for the end of the command: how many, and the best with the settings to have it again."""
    counts = {state: sum(trial.state == state for trial in trials) for state in (*_STATES.values(), _STOPPED)}
    counted = ", ".join(f"{number} {state}" for state, number in counts.items() if number)
    lines = [f"Search in {search.folder}: {counted}."]
    best = [trial for trial in trials if trial.best]
    for trial in best[:5]:
        values = ", ".join(f"{name}={value:.6g}" for name, value in zip(search.objectives, trial.values, strict=True))
        settings = " ".join(f"{key}={_text(value)}" for key, value in trial.params.items())
        lines.append(f"Best: trial {trial.number}, {values} with {settings}")
    if len(best) > 5:
        lines.append(f"... {len(best)} trials in all that no other beats in every objective; see search.csv.")
    if not best:
        lines.append("No trial has a score.")
    failed = [trial for trial in trials if trial.state == "failed" and trial.note == "error"]
    if failed:
        folders = ", ".join(trial.folder for trial in failed)
        lines.append(f"With an error: {folders}; see run.log there. The same command tries them again.")
    if counts[_STOPPED]:
        folders = ", ".join(trial.folder for trial in trials if trial.state == _STOPPED)
        lines.append(f"Ended at trainer.max_time, with a checkpoint: {folders}. The same command continues them.")
    if counts["running"]:
        lines.append("Trials that are running belong to other processes of this search.")
    return "\n".join(lines)


def _rows(search: Search, trials: Sequence[Trial]) -> tuple[list[str], list[list[str]]]:
    heads = ["trial", "state", *search.objectives, *search.space, "folder", "note"]
    rows = []
    for trial in trials:
        values = [f"{value:.6g}" for value in trial.values] or [""] * len(search.objectives)
        params = [_text(trial.params[key]) if key in trial.params else "" for key in search.space]
        rows.append([str(trial.number), trial.state, *values, *params, trial.folder, trial.note])
    return heads, rows


def _csv(search: Search, trials: Sequence[Trial]) -> str:
    buffer = io.StringIO()
    heads, rows = _rows(search, trials)
    csv.writer(buffer, lineterminator="\n").writerows([heads, *rows])
    return buffer.getvalue()


def _markdown(search: Search, trials: Sequence[Trial]) -> str:
    heads, rows = _rows(search, trials)
    bold = [[f"**{cell}**" if trial.best and cell else cell for cell in row] for trial, row in zip(trials, rows)]
    lines = [heads, ["---"] * len(heads), *bold]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines) + "\n"


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _figure(search: Search, trials: Sequence[Trial]) -> Figure:
    """Values in the order of the trials, or the Pareto front; beside it how much each setting mattered."""
    from matplotlib.figure import Figure

    importances = [_importance(search.study, index) for index in range(len(search.objectives))]
    rows = max(map(len, importances))
    figure = Figure(figsize=(9.0 if rows else 5.0, max(3.2, 1.2 + 0.35 * rows * len(importances))))
    axes = figure.subplots(1, 2 if rows else 1, squeeze=False, width_ratios=[3, 2] if rows else None)[0]
    if len(search.objectives) == 1:
        _draw_history(axes[0], search, trials)
    else:
        _draw_front(axes[0], search, trials)
    if rows:
        _draw_importance(axes[1], search, importances)
    return figure


def _draw_history(axes: Axes, search: Search, trials: Sequence[Trial]) -> None:
    done = sorted((trial for trial in trials if trial.values), key=lambda trial: trial.number)
    numbers, values = [trial.number for trial in done], [trial.values[0] for trial in done]
    better = max if search.study.direction.name == "MAXIMIZE" else min
    reached = [better(values[: i + 1]) for i in range(len(values))]
    axes.plot(numbers, values, **{**plotting.line_style(0), "linestyle": "none"}, label="trial")
    axes.step(numbers, reached, where="post", **{**plotting.line_style(1), "marker": ""}, label="best so far")
    pruned = [trial.number for trial in trials if trial.state == "pruned"]
    if pruned:
        axes.plot(
            pruned,
            [0.0] * len(pruned),
            "x",
            color="0.5",
            transform=axes.get_xaxis_transform(),
            clip_on=False,
            label="pruned",
        )
    axes.set_xlabel("trial")
    axes.set_ylabel(search.objectives[0])
    _legend(axes)


def _draw_front(axes: Axes, search: Search, trials: Sequence[Trial]) -> None:
    for place, (label, best) in enumerate((("trial", False), ("Pareto front", True))):
        points = sorted(trial.values for trial in trials if trial.values and trial.best is best)
        style = {**plotting.line_style(place), "linestyle": "none"}
        axes.plot([point[0] for point in points], [point[1] for point in points], **style, label=label)
    axes.set_xlabel(search.objectives[0])
    axes.set_ylabel(search.objectives[1])
    _legend(axes)


def _draw_importance(axes: Axes, search: Search, importances: Sequence[Mapping[str, float]]) -> None:
    keys = list(importances[0])[::-1]
    height = 0.8 / len(importances)
    for place, (name, importance) in enumerate(zip(search.objectives, importances, strict=True)):
        centers = [index - 0.4 + height * (len(importances) - place - 0.5) for index in range(len(keys))]
        color = plotting.line_style(place)["color"]
        axes.barh(centers, [importance.get(key, 0.0) for key in keys], height, color=color, label=name)
    logarithmic = {key for key, one in search.space.items() if isinstance(one, Interval) and one.log}
    axes.set_yticks(range(len(keys)), [f"{key} (log)" if key in logarithmic else key for key in keys])
    axes.set_xlabel("importance (fANOVA)")
    if len(importances) > 1:
        _legend(axes)


def _legend(axes: Axes) -> None:
    """Above the axes: within, its marks could be taken for trials."""
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3, frameon=False)


def _importance(study: Study, objective: int) -> dict[str, float]:
    """Share of the values' variance that each setting explains; empty where there is too little to say so."""
    from optuna.importance import FanovaImportanceEvaluator, get_param_importances

    complete = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    values = {trial.values[objective] for trial in complete}
    keys = {key for trial in complete for key in trial.params}
    varied = [key for key in keys if len({trial.params.get(key) for trial in complete}) > 1]
    if len(complete) < _ENOUGH or len(values) < 2 or len(varied) < 2:  # the importance of one alone is 1
        return {}
    evaluator = FanovaImportanceEvaluator(seed=0)
    found = get_param_importances(
        study, evaluator=evaluator, params=sorted(varied), target=lambda trial: trial.values[objective]
    )
    return dict(found)
