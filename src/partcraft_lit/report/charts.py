"""Line charts as SVG, drawn by hand: no script, no font, colours from the page's style."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape

from partcraft_lit.core.visualization import hex_color, part_colors
from partcraft_lit.report.content import Chart, Curve

WIDTH, HEIGHT = 420, 236
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 26
#: Points of a raw line; more would be finer than the picture.
MOST_POINTS = 240
#: Below this every point is shown, and nothing is smoothed.
FEW_POINTS = 12

Point = tuple[float, float]


def line_chart(chart: Chart) -> str:
    """A figure with the chart and a legend that names the last value of each line; "" if no value is finite."""
    curves = [(curve, _finite(curve.points)) for curve in chart.curves]
    curves = [(curve, points) for curve, points in curves if points]
    if not curves:
        return ""
    values = [value for _, points in curves for _, value in points]
    log = _use_log(chart, values)
    x_axis = Axis.around([step for _, points in curves for step, _ in points], LEFT, WIDTH - RIGHT, log=False)
    y_axis = Axis.around(_robust(values), HEIGHT - BOTTOM, TOP, log=log, roomy=True)
    lines = "".join(_line(points, _stroke(curve), x_axis, y_axis) for curve, points in curves)
    lost = sum(len(curve.points) for curve in chart.curves) - len(values)
    note = " ".join(filter(None, [chart.note, f"{lost} values are not finite." if lost else ""]))
    return (
        '<figure class="chart">'
        f"<figcaption><b>{escape(chart.title)}</b>{'<span>log scale</span>' if log else ''}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_in_words(chart.title, curves))}">'
        f"{_grid(x_axis, y_axis)}{lines}</svg>"
        f"{_legend(curves)}{f'<p class=quiet>{escape(note)}</p>' if note else ''}</figure>"
    )


class Axis:
    """Maps values to pixels, and knows round values to mark."""

    def __init__(self, low: float, high: float, start: float, end: float, log: bool) -> None:
        self.low, self.high, self.start, self.end, self.log = low, high, start, end, log

    @classmethod
    def around(cls, values: Sequence[float], start: float, end: float, log: bool, roomy: bool = False) -> Axis:
        low, high = min(values), max(values)
        if log:
            return cls(low / 1.1, high * 1.1, start, end, log)
        if low == high:
            low, high = low - 0.5, high + 0.5
        elif roomy:
            margin = 0.06 * (high - low)
            # A scale of non-negative values starts at 0 unless that would flatten the curve.
            low = 0.0 if 0 <= low < 0.5 * high else low - margin
            high += margin
        return cls(low, high, start, end, log)

    def place(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[float]:
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            factors = (1, 2, 5) if len(powers) <= 4 else (1,)
            marks = [factor * 10.0**power for power in powers for factor in factors]
        else:
            step = nice((self.high - self.low) / about)
            marks = [step * index for index in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        return [mark for mark in marks if self.low <= mark <= self.high]


def smooth(points: Sequence[Point], window: int) -> list[Point]:
    """Mean over a centred window, cut off at both ends of the series, so that the line does not lag."""
    sums = [0.0]
    for _, value in points:
        sums.append(sums[-1] + value)
    result = []
    for index, (step, _) in enumerate(points):
        low, high = max(index - window // 2, 0), min(index + window // 2 + 1, len(points))
        result.append((step, (sums[high] - sums[low]) / (high - low)))
    return result


def thin(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` points: means of equal runs of neighbours."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    runs = [points[low:high] for low, high in itertools.pairwise(edges)]
    return [(sum(p[0] for p in run) / len(run), sum(p[1] for p in run) / len(run)) for run in runs]


def number(value: float) -> str:
    """Three significant digits, "12k" for thousands, no "e" where it can be helped."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 10_000:
        return f"{value / 1000:.3g}k"
    if size >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    if size >= 1e-3:
        return f"{float(f'{value:.3g}'):g}"
    return f"{value:.0e}".replace("e-0", "e-")


def _line(points: list[Point], color: str, x_axis: Axis, y_axis: Axis) -> str:
    raw = _path(thin(points, MOST_POINTS), x_axis, y_axis)
    if len(points) < FEW_POINTS:
        dots = "".join(f'<circle cx="{x_axis.place(x)}" cy="{y_axis.place(y)}" r="2.6"/>' for x, y in points)
        return f'<g style="--c:{color}"><path class="main" d="{raw}"/><g class="dots">{dots}</g></g>'
    main = _path(thin(smooth(points, _window(points)), MOST_POINTS), x_axis, y_axis)
    return f'<g style="--c:{color}"><path class="raw" d="{raw}"/><path class="main" d="{main}"/></g>'


def _window(points: Sequence[Point]) -> int:
    return 1 if len(points) < FEW_POINTS else max(5, len(points) // 14)


def _path(points: Sequence[Point], x_axis: Axis, y_axis: Axis) -> str:
    return "M" + "L".join(f"{x_axis.place(x)} {y_axis.place(y)}" for x, y in points)


def _grid(x_axis: Axis, y_axis: Axis) -> str:
    pieces = []
    for mark in y_axis.ticks():
        y = y_axis.place(mark)
        pieces.append(f'<path class="rule" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
        pieces.append(f'<text x="{LEFT - 7}" y="{y + 4}" text-anchor="end">{number(mark)}</text>')
    for mark in x_axis.ticks(about=4):
        x = x_axis.place(mark)
        anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
        pieces.append(f'<text x="{x}" y="{HEIGHT - 7}" text-anchor="{anchor}">{number(mark)}</text>')
    pieces.append(f'<path class="base" d="M{LEFT} {HEIGHT - BOTTOM}H{WIDTH - RIGHT}"/>')
    return "".join(pieces)


def _legend(curves: Sequence[tuple[Curve, list[Point]]]) -> str:
    if len(curves) == 1:
        points = curves[0][1]
        ends = smooth(points, _window(points))
        return f'<p class="quiet">from <b>{number(ends[0][1])}</b> to <b>{number(ends[-1][1])}</b></p>'
    items = (
        f'<li style="--c:{_stroke(curve)}"><i></i>{escape(curve.name)} <b>{number(points[-1][1])}</b></li>'
        for curve, points in curves
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _stroke(curve: Curve) -> str:
    return "var(--accent)" if curve.part is None else hex_color(part_colors(curve.part + 1)[curve.part])


def _in_words(title: str, curves: Sequence[tuple[Curve, list[Point]]]) -> str:
    ends = "; ".join(f"{curve.name} from {number(p[0][1])} to {number(p[-1][1])}" for curve, p in curves)
    return f"{title}: {ends}"


def _finite(points: Sequence[Point]) -> list[Point]:
    return [(step, value) for step, value in points if math.isfinite(value)]


def _use_log(chart: Chart, values: Sequence[float]) -> bool:
    positive = min(values) > 0
    if chart.log is not None:
        return chart.log and positive
    robust = _robust(values)
    return positive and max(robust) / min(robust) >= 20


def _robust(values: Sequence[float]) -> list[float]:
    """Without the outermost hundredth at either end of long series: one spike must not flatten a chart."""
    if len(values) < 100:
        return list(values)
    ordered = sorted(values)
    cut = len(ordered) // 100
    return ordered[cut:-cut]


def nice(step: float) -> float:
    """The nearest of 1, 2, 2.5, 5 times a power of ten that is not smaller."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))
