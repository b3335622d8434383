"""The result of a sweep: ``sweep.csv``, ``sweep.md`` and ``sweep.png``, parameters by scores, the best first."""

from __future__ import annotations

import math
import re
import statistics
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, LogLocator, MaxNLocator, NullLocator

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.plotting import line_style, number, save_figure, style
from partcraft_lit.report.tables import csv_text, short

#: What is shown of many scores, in this order; the objective comes before them.
_SHOWN = (
    r"eval/emr@reconstruction",
    r"eval/cosim@reconstruction",
    r"truth/part_accuracy@",
    r"pictures/fid@",
    r"pictures/kid@",
    r"pictures/",
    r"eval/",
    r"",
)
#: Not results of what was trained.
_BOUNDS = re.compile(r"(untrained|ceiling|codes)/|@perfect|autoencod|real_")
_SMALL_IS_BETTER = re.compile(r"(^|[/_])(fid|kid|leakage|loss|error|distance|ambiguity)(?![a-z])")
_SEED = "seed"
_MOST_SCORES, _MOST_ROWS, _MOST_COLUMNS, _MOST_COLORS = 5, 3, 4, 6
#: Positive values whose ratio is at least this are shown on a logarithmic axis.
_LOG_SPAN = 20
#: Inches.
_PANEL = (3.5, 2.45)
_INK = "#20242c"


@dataclass(frozen=True)
class SweepJob:
    """One job.

    Attributes:
        name: what sets it apart.
        folder: of it, from that of the sweep.
        status: "done", or what else became of it.
        parameters: those that the sweep varies, as they were written.
        scores: name -> finite number.
        seconds: that it took; None if that is not known.
    """

    name: str
    folder: str
    status: str
    parameters: Mapping[str, str]
    scores: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None


@dataclass(frozen=True)
class _Setting:
    """Jobs that differ in their seed alone."""

    parameters: Mapping[str, str]
    jobs: Sequence[SweepJob]

    def mean(self, score: str) -> float:
        values = [job.scores[score] for job in self.jobs if score in job.scores]
        return statistics.fmean(values) if values else math.nan

    def deviation(self, score: str) -> float:
        """Standard deviation over the seeds; NaN for a single one."""
        values = [job.scores[score] for job in self.jobs if score in job.scores]
        return statistics.stdev(values) if len(values) > 1 else math.nan


def write_sweep(folder: Path, jobs: Sequence[SweepJob], objective: str | None = None) -> None:
    """Writes the three files.

    Args:
        folder: of the sweep.
        jobs: all of them; those that are not done have no scores.
        objective: the score by which they are ordered; None for the first of those that are shown.
    """
    jobs = [job if job.status == "done" else SweepJob(job.name, job.folder, job.status, job.parameters) for job in jobs]
    parameters = _parameters(jobs)
    scores = headline_scores(jobs, objective)
    ordered = sorted(jobs, key=lambda job: _rank(job.scores.get(scores[0], math.nan), scores[0])) if scores else jobs
    atomic_write(folder / "sweep.csv", _csv(ordered, parameters))
    atomic_write(folder / "sweep.md", _markdown(folder.name, ordered, parameters, scores))
    if scores and parameters:
        _draw(folder / "sweep.png", folder.name, ordered, parameters, scores)


def headline_scores(jobs: Sequence[SweepJob], objective: str | None = None) -> list[str]:
    """The few scores that are shown of all that the jobs have; the first is the one by which they are ordered."""
    known = sorted({key for job in jobs for key in job.scores})
    ours = [key for key in known if not _BOUNDS.search(key)] or known
    first = [objective] if objective in known else []
    found = [key for pattern in _SHOWN for key in ours if key.startswith(pattern)]
    return list(dict.fromkeys([*first, *found]))[:_MOST_SCORES]


def small_is_better(score: str) -> bool:
    return _SMALL_IS_BETTER.search(score) is not None


def _parameters(jobs: Sequence[SweepJob]) -> list[str]:
    """Keys with several values; all keys of a single job."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.parameters))
    varied = [key for key in keys if len({job.parameters.get(key) for job in jobs}) > 1]
    return varied or keys


def _rank(value: float, score: str) -> tuple[bool, float]:
    """Sorts the best first and what has no value last."""
    return math.isnan(value), value if small_is_better(score) else -value


def _settings(jobs: Sequence[SweepJob], parameters: Sequence[str], score: str) -> list[_Setting]:
    """Jobs without their seeds, the best first."""
    grouped: dict[tuple[str, ...], list[SweepJob]] = {}
    chosen = [key for key in parameters if key != _SEED]
    for job in jobs:
        grouped.setdefault(tuple(job.parameters.get(key, "") for key in chosen), []).append(job)
    found = [_Setting(dict(zip(chosen, values, strict=True)), group) for values, group in grouped.items()]
    return sorted(found, key=lambda setting: _rank(setting.mean(score), score))


def _csv(jobs: Sequence[SweepJob], parameters: Sequence[str]) -> str:
    scores = sorted({key for job in jobs for key in job.scores})
    lines = [
        [
            *(job.parameters.get(key) for key in parameters),
            job.status,
            *(job.scores.get(key) for key in scores),
            job.seconds,
            job.folder,
        ]
        for job in jobs
    ]
    return csv_text([*parameters, "status", *scores, "seconds", "folder"], lines)


def _markdown(title: str, jobs: Sequence[SweepJob], parameters: Sequence[str], scores: Sequence[str]) -> str:
    done = [job for job in jobs if job.status == "done"]
    lines = [f"# {title}", "", f"{len(done)} of {len(jobs)} jobs are done."]
    if scores:
        better = "the smallest" if small_is_better(scores[0]) else "the largest"
        lines[-1] += f" Ordered by `{scores[0]}`, {better} first; the best of a column is bold."
    if scores and parameters:
        lines += ["", "![Parameters by scores](sweep.png)"]
    if scores and _SEED in parameters and len(parameters) > 1:
        settings = _settings(done, parameters, scores[0])
        chosen = [key for key in parameters if key != _SEED]
        means = [[setting.mean(score) for score in scores] for setting in settings]
        texts = [[*setting.parameters.values()] for setting in settings]
        spreads = [[setting.deviation(score) for score in scores] for setting in settings]
        tails = [[str(len(setting.jobs))] for setting in settings]
        lines += ["", "## Mean over seeds", "", "± is the standard deviation over the seeds.", ""]
        lines += [*_table(chosen, scores, ["seeds"], texts, means, tails, spreads), "", "## Jobs"]
    texts = [[job.parameters.get(key, "") for key in parameters] for job in jobs]
    values = [[job.scores.get(score, math.nan) for score in scores] for job in jobs]
    tails = [
        ["" if job.seconds is None else f"{job.seconds:.0f} s", f"[{job.folder}]({job.folder})" + _unless_done(job)]
        for job in jobs
    ]
    lines += ["", *_table(parameters, scores, ["time", "folder"], texts, values, tails), ""]
    return "\n".join(lines)


def _unless_done(job: SweepJob) -> str:
    return "" if job.status == "done" else f" **{job.status}**"


def _table(
    parameters: Sequence[str],
    scores: Sequence[str],
    more: Sequence[str],
    texts: Sequence[Sequence[str]],
    values: Sequence[Sequence[float]],
    tails: Sequence[Sequence[str]],
    spreads: Sequence[Sequence[float]] | None = None,
) -> Iterator[str]:
    heads = [f"{score} {'↓' if small_is_better(score) else '↑'}" for score in scores]
    yield "| " + " | ".join([*parameters, *heads, *more]) + " |"
    yield "|" + "---|" * len(parameters) + "---:|" * (len(heads) + len(more))
    best = [_best([row[place] for row in values], score) for place, score in enumerate(scores)]
    around = spreads or [[math.nan] * len(scores)] * len(values)
    for text, row, spread, tail in zip(texts, values, around, tails, strict=True):
        shown = [f"**{short(value)}**" if value == best[i] else short(value) for i, value in enumerate(row)]
        shown = [
            f"{mean} ± {short(size)}" if math.isfinite(size) else mean for mean, size in zip(shown, spread, strict=True)
        ]
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in [*text, *shown, *tail]) + " |"


def _best(values: Sequence[float], score: str) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return (min if small_is_better(score) else max)(finite, default=math.nan)


def _draw(path: Path, title: str, jobs: Sequence[SweepJob], parameters: Sequence[str], scores: Sequence[str]) -> None:
    """A panel for each of a few parameters and scores: every job a point, a line through the means of a grid."""
    done = [job for job in jobs if job.scores]
    shown = [key for key in parameters if key != _SEED] or list(parameters)
    color_key = _color_key(done, shown)
    columns = [key for key in shown if key != color_key][:_MOST_COLUMNS]
    rows = _varying(done, scores)[:_MOST_ROWS]
    colors = list(dict.fromkeys(job.parameters.get(color_key, "") for job in done)) if color_key else [""]
    colors.sort(key=_natural)
    with style():
        across, down = (len(rows), 1) if len(columns) == 1 else (len(columns), len(rows))
        figure = Figure(
            figsize=(max(6.0, _PANEL[0] * across + 0.5), _PANEL[1] * down + 1.1),
            layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.05),
        )
        heading = _heading(done, parameters, scores[0])
        figure.suptitle(textwrap.fill(heading, 22 * across), x=0.012, ha="left")
        if len(columns) == 1:
            panels = figure.subplots(1, len(rows), squeeze=False).T
        else:
            panels = figure.subplots(len(rows), len(columns), squeeze=False, sharey="row", sharex="col")
        for line, score in zip(panels, rows, strict=True):
            for axes, key in zip(line, columns, strict=True):
                _draw_panel(axes, done, key, score, color_key, colors)
                if len(columns) == 1 or score == rows[-1]:
                    axes.set_xlabel(key)
            line[0].set_ylabel(f"{score.replace('@', chr(10) + '@')} {'↓' if small_is_better(score) else '↑'}")
        handles = [Line2D([], [], label=name, **line_style(i)) for i, name in enumerate(colors) if color_key]
        star: dict[str, Any] = {"marker": "*", "markersize": 13, "linestyle": "", "color": _INK}
        handles.append(Line2D([], [], label="best job", **star))
        legend = figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), title=color_key)
        legend.set_alignment("left")
        save_figure(path, figure, title)


def _heading(jobs: Sequence[SweepJob], parameters: Sequence[str], score: str) -> str:
    """What is best: a job, or where seeds are swept too, the setting whose mean is."""
    settings = _settings(jobs, parameters, score)
    over_seeds = _SEED in parameters and len(parameters) > 1
    best = settings[0].parameters if over_seeds else jobs[0].parameters
    words = ", ".join(f"{_short_key(key)} = {_shown(best.get(key, '–'))}" for key in parameters if key in best)
    return (
        f"Best of {len(settings)}, in the mean over seeds: {words}" if over_seeds else f"Best of {len(jobs)}: {words}"
    )


def _varying(jobs: Sequence[SweepJob], scores: Sequence[str]) -> list[str]:
    """Scores in which the jobs differ; all if they differ in none."""
    found = [score for score in scores if len({job.scores.get(score) for job in jobs}) > 1]
    return found or [score for score in scores if any(score in job.scores for job in jobs)]


def _draw_panel(
    axes: Axes, jobs: Sequence[SweepJob], key: str, score: str, color_key: str | None, colors: Sequence[str]
) -> None:
    place_of = _scale(axes, [job.parameters.get(key, "") for job in jobs])
    for index, color in enumerate(colors):
        points = [
            (place_of[job.parameters.get(key, "")], job.scores[score])
            for job in jobs
            if score in job.scores and (color_key is None or job.parameters.get(color_key, "") == color)
        ]
        looks = line_style(index)
        by_place: dict[float, list[float]] = {}
        for place, value in points:
            by_place.setdefault(place, []).append(value)
        if 1 < len(by_place) <= max(len(points) * 0.75, 12):  # a grid, not a search
            means = sorted((place, statistics.fmean(values)) for place, values in by_place.items())
            axes.plot(*zip(*means, strict=True), **looks | {"marker": ""}, zorder=2)
        axes.plot(*zip(*points, strict=True), **looks | {"linestyle": ""}, alpha=0.75, zorder=3)
    if score in jobs[0].scores:
        place = place_of[jobs[0].parameters.get(key, "")]
        axes.plot(place, jobs[0].scores[score], marker="*", markersize=15, color=_INK, zorder=4)
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(lambda value, _: number(value))
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", visible=False)


def _scale(axes: Axes, texts: Sequence[str]) -> dict[str, float]:
    """Sets the axis of a parameter; text -> its place. Zero stands at the left end of a logarithmic axis."""
    numbers = {text: value for text in texts if (value := _number(text)) is not None}
    distinct = list(dict.fromkeys(texts))
    axes.margins(x=0.1, y=0.12)
    if len(numbers) < len(distinct):
        ordered = sorted(distinct, key=_natural)
        names = [text if len(text) <= 14 else f"{text[:13]}…" for text in ordered]
        axes.xaxis.set_major_locator(FixedLocator(range(len(ordered))))
        axes.xaxis.set_major_formatter(FixedFormatter(names))
        axes.set_xlim(-0.5, len(ordered) - 0.5)
        return {text: float(place) for place, text in enumerate(ordered)}
    positive = [value for value in numbers.values() if value > 0]
    log = min(numbers.values()) >= 0 and bool(positive) and max(positive) / min(positive) >= _LOG_SPAN
    places = {text: min(positive) / 10 if log and value == 0 else value for text, value in numbers.items()}
    if log:
        axes.set_xscale("log")
        decades = math.log10(max(positive) / min(positive))
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if decades <= 2 else (1.0,)))
        axes.xaxis.set_minor_locator(NullLocator())
    if len(distinct) <= 7:
        ticks = sorted({place: number(numbers[text]) for text, place in places.items()}.items())
        axes.xaxis.set_major_locator(FixedLocator([place for place, _ in ticks]))
        axes.xaxis.set_major_formatter(FixedFormatter([text for _, text in ticks]))
    else:
        axes.xaxis.set_major_formatter(lambda value, _: number(value))
    return places


def _color_key(jobs: Sequence[SweepJob], parameters: Sequence[str]) -> str | None:
    """A parameter of few values that colours tell apart: one of words, else one of a grid of two or more."""
    if len(parameters) < 2:
        return None
    values = {key: {job.parameters.get(key, "") for job in jobs} for key in parameters}
    words = [key for key in parameters if any(_number(text) is None for text in values[key])]
    few = [key for key in words if 1 < len(values[key]) <= _MOST_COLORS]
    grid = math.prod(len(found) for found in values.values()) <= 2 * len(jobs)
    if not few and grid and not words:
        few = sorted((key for key in parameters if 1 < len(values[key]) <= 4), key=lambda key: len(values[key]))
    return few[0] if few else None


def _number(text: str) -> float | None:
    try:
        value = float(text.strip("'\""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _natural(text: str) -> tuple[bool, float, str]:
    value = _number(text)
    return value is None, value or 0.0, text


def _shown(text: str) -> str:
    """A value as the axes have it: three digits of what an optimizer drew, 1e-5 for Hydra's 1e-05."""
    value = _number(text)
    return text if value is None or (len(text) <= 6 and "e" not in text) else number(value)


def _short_key(key: str) -> str:
    return key.rpartition(".")[2]
