"""The figure of a table: bars or lines with their intervals, one panel for each quantity."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from partcraft_lit.core.plotting import line_style, number, save_figure, style
from partcraft_lit.report.tables import short

#: Inches.
_WIDTH, _LINES_HEIGHT, _BAR_HEIGHT = 10.0, 3.0, 0.29
_MOST_IN_A_ROW = 3
#: With more lines than this, bands hide each other: points have error bars, and lines stand so many points aside.
_MOST_BANDS = 4
_ASIDE = 2.6
_TITLE_LETTERS, _LABEL_LETTERS = 92, 40
#: Letters of a line of a bar's name, and of the titles of a row of panels together.
_NAME_LETTERS, _ROW_LETTERS = 32, 75
_BEST, _OTHERS, _INK = "#3a8cc4", "#c3dbeb", "#20242c"


@dataclass(frozen=True)
class Point:
    """A value with its interval, at a place along the axis."""

    x: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """Points of one setting, by ``x``."""

    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class Bar:
    """One row; ``best`` is drawn in a strong colour."""

    name: str
    mean: float
    low: float
    high: float
    best: bool = False


@dataclass(frozen=True)
class Panel:
    """Bars, or lines, of one quantity."""

    title: str
    marks: Sequence[Bar | Line]


@dataclass(frozen=True)
class Figure:
    """Panels with one axis: what is along it, and whether it is logarithmic (zero then stands at its left end)."""

    panels: Sequence[Panel]
    x: str = ""
    log: bool = False


def draw_figure(path: Path, title: str, figure: Figure) -> Path:
    """Writes the figure as PNG and, beside it, as SVG; panels without a value are left out.

    Args:
        path: of the PNG.
        title: stands above it.
        figure: what is drawn.

    Returns:
        ``path``.
    """
    panels = [panel for panel in figure.panels if panel.marks]
    names = list(dict.fromkeys(mark.name for panel in panels for mark in panel.marks))
    lines = any(isinstance(mark, Line) for panel in panels for mark in panel.marks)
    columns = max(1, min(len(panels), _MOST_IN_A_ROW))
    rows = max(1, math.ceil(len(panels) / columns))
    heading = textwrap.fill(title, _TITLE_LETTERS)
    legend_rows = math.ceil(len(names) / _MOST_IN_A_ROW) if lines and any(names) else 0
    high = _LINES_HEIGHT if lines else 0.75 + _BAR_HEIGHT * max(len(names), 2)
    with style():
        whole = MatplotlibFigure(
            figsize=(_WIDTH, rows * high + 0.25 * (heading.count("\n") + 2) + 0.22 * legend_rows),
            layout=ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08, wspace=0.04, hspace=0.06),
        )
        whole.suptitle(heading, x=0.012, ha="left")
        grid = whole.subplots(rows, columns, squeeze=False, sharey=False if lines else "row")
        for panel, axes in zip(panels, grid.flat):
            axes.set_title(textwrap.fill(panel.title, _ROW_LETTERS // columns, break_on_hyphens=False))
            if lines:
                _draw_lines(axes, panel, figure, names)
            else:
                _draw_bars(axes, panel, names)
        for axes in grid.flat[len(panels) :]:
            axes.set_visible(False)
        if legend_rows:
            handles = [axes.plot([], [], label=name, **line_style(index))[0] for index, name in enumerate(names)]
            whole.legend(handles=handles, loc="outside lower left", ncols=min(len(names), 4))
        return save_figure(path, whole, title)


def _draw_bars(axes: Axes, panel: Panel, names: Sequence[str]) -> None:
    bars = [mark for mark in panel.marks if isinstance(mark, Bar)]
    for bar in bars:
        place = names.index(bar.name)
        axes.barh(place, bar.mean, height=0.62, color=_BEST if bar.best else _OTHERS)
        end = max(bar.mean, 0.0)
        if math.isfinite(bar.low):
            axes.errorbar(bar.mean, place, xerr=_errors(bar), fmt="none", ecolor=_INK, elinewidth=1.3, capsize=3.2)
            end = max(end, bar.high)
        weight = "bold" if bar.best else "normal"
        axes.annotate(
            short(bar.mean), (end, place), (5, 0), textcoords="offset points", va="center", size=9, weight=weight
        )
    labels = [textwrap.fill(name, _NAME_LETTERS) for name in names]
    axes.set_yticks(range(len(names)), labels, size=9 if any("\n" in label for label in labels) else 10)
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.axvline(0, color=_INK, linewidth=0.8)
    axes.margins(x=0.17)  # room for the numbers
    axes.set_xlim(left=min(axes.get_xlim()[0], 0.0) if any(bar.mean < 0 or bar.low < 0 for bar in bars) else 0.0)
    _number_axis(axes.xaxis, 4)


def _draw_lines(axes: Axes, panel: Panel, figure: Figure, names: Sequence[str]) -> None:
    lines = [mark for mark in panel.marks if isinstance(mark, Line)]
    marks = sorted({point.x for line in lines for point in line.points})
    axes.margins(x=0.1)
    if figure.log:
        axes.set_xscale("log")
    zero = min((mark for mark in marks if mark > 0), default=1.0) / 10
    crowded = len(names) > _MOST_BANDS
    for line in lines:
        index = names.index(line.name)
        aside = _ASIDE * (index - (len(names) - 1) / 2) if crowded else 0.0
        moved = ScaledTranslation(aside / 72, 0, axes.figure.dpi_scale_trans)
        looks: dict[str, Any] = line_style(index) | {"transform": axes.transData + moved}
        places = [zero if figure.log and point.x == 0 else point.x for point in line.points]
        bounded = [(x, point) for x, point in zip(places, line.points, strict=True) if math.isfinite(point.low)]
        axes.plot(places, [point.mean for point in line.points], zorder=3, **looks)
        if bounded and not crowded and len(line.points) > 1:
            xs, lows, highs = zip(*((x, point.low, point.high) for x, point in bounded), strict=True)
            axes.fill_between(xs, lows, highs, color=looks["color"], alpha=0.13, linewidth=0)
        else:
            for x, point in bounded:
                axes.plot([x, x], [point.low, point.high], **looks | {"linestyle": "-", "marker": "", "linewidth": 1.1})
        heights = [v for point in line.points for v in (point.mean, point.low, point.high)]
        axes.update_datalim([(x, v) for x in places for v in heights if math.isfinite(v)])
    axes.autoscale_view()
    labels = [number(mark) for mark in marks]
    axes.xaxis.set_major_locator(FixedLocator([zero if figure.log and mark == 0 else mark for mark in marks]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FixedFormatter(labels))
    axes.grid(axis="x", visible=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(textwrap.fill(figure.x, _LABEL_LETTERS))
    _number_axis(axes.yaxis, 5)


def _errors(bar: Bar) -> tuple[list[float], list[float]]:
    """Lengths to both sides; a bootstrap interval of few values may leave its mean outside."""
    return [max(bar.mean - bar.low, 0.0)], [max(bar.high - bar.mean, 0.0)]


def _number_axis(axis: Any, ticks: int) -> None:
    axis.set_major_locator(MaxNLocator(ticks, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(lambda value, _: number(value))
