"""The line charts of a report: curves of training, raw and smoothed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from partcraft_lit.core.plotting import encode_figure, line_style, number, style
from partcraft_lit.core.visualization import hex_color, part_colors
from partcraft_lit.report.sections import Chart, Curve

#: Inches; a chart is shown about 350 CSS pixels wide.
_SIZE = (3.7, 2.2)
#: Points of a raw line; more would be finer than the image.
MOST_POINTS = 240
#: Below this every point is shown, and nothing is smoothed.
FEW_POINTS = 12
#: Values whose ratio is at least this are shown on a logarithmic axis.
_LOG_SPAN = 20

Point = tuple[float, float]


@dataclass(frozen=True)
class ChartImage:
    """A chart as SVG, for a light and a dark page; ``words`` say what it shows, ``note`` stands below it."""

    title: str
    light: bytes
    dark: bytes
    words: str
    note: str
    log: bool


def line_chart(chart: Chart) -> ChartImage | None:
    """Draws a chart; None if no value is finite."""
    curves = [(curve, _finite(curve.points)) for curve in chart.curves]
    curves = [(curve, points) for curve, points in curves if points]
    if not curves:
        return None
    values = [value for _, points in curves for _, value in points]
    log = _use_log(chart, values)
    lost = sum(len(curve.points) for curve in chart.curves) - len(values)
    ends = [(curve.name, number(_ends(points)[0]), number(_ends(points)[1])) for curve, points in curves]
    words = "; ".join(f"{name} from {first} to {last}" for name, first, last in ends)
    single = f"From {ends[0][1]} to {ends[0][2]}." if len(ends) == 1 else ""
    note = " ".join(filter(None, [single, chart.note, f"{lost} values are not finite." if lost else ""]))
    light, dark = (_draw(chart.title, curves, log, is_dark) for is_dark in (False, True))
    return ChartImage(chart.title, light, dark, words, note, log)


def _draw(title: str, curves: Sequence[tuple[Curve, list[Point]]], log: bool, dark: bool) -> bytes:
    with style(dark):
        rows = math.ceil(len(curves) / 2) if len(curves) > 1 else 0
        figure = Figure(figsize=(_SIZE[0], _SIZE[1] + 0.2 * rows), layout="constrained")
        axes = figure.subplots()
        for index, (curve, points) in enumerate(curves):
            _plot(axes, index, curve, points, dark)
        if log:
            axes.set_yscale("log")
        axes.set_ylim(*_limits([value for _, points in curves for _, value in points], log))
        steps = {step for _, points in curves for step, _ in points}
        if len(steps) == 1:
            axes.set_xlim(min(steps) - 1, max(steps) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axes.xaxis.set_major_formatter(lambda value, _: number(value))
        decades = math.log10(axes.get_ylim()[1] / axes.get_ylim()[0]) if log else 0
        subs = (1.0, 2.0, 5.0) if decades <= 2 else (1.0,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs) if log else MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(lambda value, _: number(value))
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x", visible=False)
        axes.set_xlabel("optimizer step", fontsize=9)
        if len(curves) > 1:
            figure.legend(loc="outside lower left", ncols=2, fontsize=8.5, handlelength=2.8)
        return encode_figure(figure, "svg", title)


def _plot(axes: Axes, index: int, curve: Curve, points: list[Point], dark: bool) -> None:
    looks = line_style(0 if curve.part is None else curve.part) | {"color": _color(curve, dark)}
    label = f"{curve.name}  {number(_ends(points)[1])}"
    if len(points) < FEW_POINTS:
        axes.plot(*zip(*points, strict=True), label=label, **looks | {"markersize": 0.75 * looks["markersize"]})
        return
    main = thin(smooth(points, _window(points)), MOST_POINTS)
    axes.plot(
        *zip(*thin(points, MOST_POINTS), strict=True), **looks | {"linestyle": "-", "marker": ""}, lw=0.7, alpha=0.3
    )
    if curve.part is None:
        looks |= {"marker": ""}
    every = max(len(main) // 5, 1)
    # markers of several curves stand beside, not on top of one another
    axes.plot(*zip(*main, strict=True), label=label, markevery=(index * every // 4, every), **looks)


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Mean over a centred window, cut off at both ends of the series, so that the line does not lag."""
    steps, values = zip(*points, strict=True)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    place = np.arange(len(points))
    low, high = np.maximum(place - window // 2, 0), np.minimum(place + window // 2 + 1, len(points))
    return list(zip(steps, ((sums[high] - sums[low]) / (high - low)).tolist(), strict=True))


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` points: means of equal runs of neighbours."""
    if len(points) <= most:
        return list(points)
    means = [run.mean(axis=0) for run in np.array_split(np.array(points, dtype=float), most)]
    return [(float(step), float(value)) for step, value in means]


def _ends(points: Sequence[Point]) -> tuple[float, float]:
    """First and last value, smoothed."""
    smoothed = smooth(points, _window(points))
    return smoothed[0][1], smoothed[-1][1]


def _window(points: Sequence[Point]) -> int:
    return 1 if len(points) < FEW_POINTS else max(5, len(points) // 14)


def _color(curve: Curve, dark: bool) -> str:
    """Part colours are mixed with ink, so that yellow is seen on white and blue on black."""
    if curve.part is None:
        return "#62b6ee" if dark else "#0b6aa8"
    color, ink = to_rgb(hex_color(part_colors(curve.part + 1)[curve.part])), 1.0 if dark else 0.1
    return hex_color([round(255 * (0.82 * channel + 0.18 * ink)) for channel in color])


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _use_log(chart: Chart, values: Sequence[float]) -> bool:
    positive = min(values) > 0
    if chart.log is not None:
        return chart.log and positive
    low, high = _robust(values)
    return positive and high / low >= _LOG_SPAN


def _robust(values: Sequence[float]) -> tuple[float, float]:
    """Without the outermost hundredth at either end of long series: one spike must not flatten a chart."""
    ordered, cut = sorted(values), len(values) // 100
    return ordered[cut], ordered[-1 - cut]


def _limits(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = _robust(values)
    if log:
        return low / 1.1, high * 1.1
    if low == high:
        return low - 0.5, high + 0.5
    margin = 0.06 * (high - low)
    # An axis of non-negative values starts at 0 unless that would flatten the curve.
    return (0.0 if 0 <= low < 0.5 * high else low - margin), high + margin
