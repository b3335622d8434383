"""The figure of a table as a PNG: bars or lines with their intervals, drawn at twice the size and scaled down."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from partcraft_lit.core.visualization import INK, WHITE, Color, from_pil, save_png
from partcraft_lit.report.charts import Axis, nice, number
from partcraft_lit.report.strokes import Stroke, dashed
from partcraft_lit.report.strokes import stroke as stroke_of

#: Pixels of the finished picture; everything is drawn _SCALE times as large.
WIDTH = 1280
_SCALE = 2
_MARGIN = 28
_GAP = 36
_LINES_HEIGHT = 340
_BAR_HEIGHT = 34
_TITLE, _TEXT, _SMALL = 19, 15, 13
_MOST_IN_A_ROW = 3
#: With more lines than this, bands hide each other: points have bars, and lines stand so many pixels aside.
_MOST_BANDS = 4
_ASIDE = 3.5
_SOFT: Color = (93, 100, 112)
_RULE: Color = (228, 226, 220)
_ACCENT: Color = (11, 106, 168)
_PALE: Color = (164, 198, 221)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


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


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float


def draw_figure(path: Path, title: str, figure: Figure) -> Path:
    """Writes the PNG; panels without a value are left out."""
    panels = [panel for panel in figure.panels if panel.marks]
    lines = any(isinstance(mark, Line) for panel in panels for mark in panel.marks)
    columns = max(1, min(len(panels), _MOST_IN_A_ROW))
    rows = math.ceil(len(panels) / columns)
    names = list(dict.fromkeys(m.name for panel in panels for m in panel.marks if isinstance(m, Line) and m.name))
    high = _LINES_HEIGHT if lines else 74 + _BAR_HEIGHT * max((len(panel.marks) for panel in panels), default=1)
    heading = _wrapped(title, WIDTH - 2 * _MARGIN, _TITLE)
    top = _MARGIN + 27 * len(heading) + 14
    keys = _key_rows(names, WIDTH - 2 * _MARGIN)
    height = top + rows * (high + _GAP) - _GAP + 26 * len(keys) + _MARGIN
    canvas = Image.new("RGB", (WIDTH * _SCALE, round(height) * _SCALE), WHITE)
    pen = _Pen(ImageDraw.Draw(canvas, "RGBA"))
    for index, text in enumerate(heading):
        pen.text(_MARGIN, _MARGIN + 27 * index + 12, text, _TITLE, INK, "lm")
    wide = (WIDTH - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (wide + _GAP)
        box = _Box(left, top + row * (high + _GAP), left + wide, top + row * (high + _GAP) + high)
        if lines:
            _draw_lines(pen, box, panel, figure, names)
        else:
            _draw_bars(pen, box, panel)
    _draw_key(pen, keys, names, height - _MARGIN - 26 * len(keys) + 12)
    small = canvas.resize((WIDTH, round(height)), Image.Resampling.LANCZOS)
    return save_png(path, from_pil(small), {"title": title})


class _Pen:
    """Draws in the coordinates of the finished picture."""

    def __init__(self, draw: ImageDraw.ImageDraw) -> None:
        self._draw = draw

    def text(self, x: float, y: float, text: str, size: int, color: Color, anchor: str) -> None:
        self._draw.text((x * _SCALE, y * _SCALE), text, fill=color, font=font(size * _SCALE), anchor=anchor)

    def line(self, points: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._draw.line(scaled, fill=color, width=max(1, round(width * _SCALE)), joint="curve")

    def dashes(self, points: Sequence[tuple[float, float]], stroke: Stroke, width: float) -> None:
        for piece in dashed(points, stroke.dashes):
            self.line(piece, stroke.color, width)

    def mark(self, x: float, y: float, radius: float, stroke: Stroke) -> None:
        """A point of a line, with a white rim."""
        if not stroke.shape:
            self.dot(x, y, radius, stroke.color)
            return
        corners = [((x + radius * a) * _SCALE, (y + radius * b) * _SCALE) for a, b in stroke.shape]
        self._draw.polygon(corners, fill=stroke.color, outline=WHITE, width=_SCALE)

    def area(self, points: Sequence[tuple[float, float]], color: Color, opacity: int) -> None:
        self._draw.polygon([(x * _SCALE, y * _SCALE) for x, y in points], fill=(*color, opacity))

    def box(self, box: _Box, color: Color, radius: float = 0) -> None:
        corners = (box.left * _SCALE, box.top * _SCALE, box.right * _SCALE, box.bottom * _SCALE)
        self._draw.rounded_rectangle(corners, radius * _SCALE, fill=color)

    def dot(self, x: float, y: float, radius: float, color: Color) -> None:
        x, y, radius = x * _SCALE, y * _SCALE, radius * _SCALE
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color, outline=WHITE, width=_SCALE)


def _draw_bars(pen: _Pen, box: _Box, panel: Panel) -> None:
    bars = [mark for mark in panel.marks if isinstance(mark, Bar)]
    names = min(max(font(_TEXT).getlength(bar.name) for bar in bars) + 14, 0.45 * (box.right - box.left))
    left, right, top, bottom = box.left + names, box.right - 62, box.top + 40, box.bottom - 26
    highest = max(value for bar in bars for value in (bar.mean, bar.high) if math.isfinite(value))
    lowest = min(value for bar in bars for value in (bar.mean, bar.low, 0.0) if math.isfinite(value))
    axis = Axis(lowest, highest if highest > lowest else lowest + 1.0, left, right, log=False)
    pen.text(box.left, box.top + 14, panel.title, 17, INK, "lm")
    for mark in axis.ticks(about=4):
        x = axis.place(mark)
        pen.line([(x, top), (x, bottom)], _RULE, 1)
        pen.text(x, bottom + 13, number(round(mark, 9)), _SMALL, _SOFT, "mm")
    step = (bottom - top) / len(bars)
    for index, bar in enumerate(bars):
        middle = top + (index + 0.5) * step
        start, end = sorted((axis.place(0.0), axis.place(bar.mean)))
        color = _ACCENT if bar.best else _PALE
        pen.box(_Box(start, middle - 0.3 * step, max(end, start + 1), middle + 0.3 * step), color, 3)
        rightmost = end
        if math.isfinite(bar.low):
            low, high = axis.place(bar.low), axis.place(bar.high)
            pen.line([(low, middle), (high, middle)], INK, 1.6)
            for x in (low, high):
                pen.line([(x, middle - 5), (x, middle + 5)], INK, 1.6)
            rightmost = max(end, high)
        pen.text(left - 10, middle, _fitted(bar.name, names - 12, _TEXT), _TEXT, INK, "rm")
        pen.text(rightmost + 8, middle, number(bar.mean), _SMALL, INK if bar.best else _SOFT, "lm")


def _draw_lines(pen: _Pen, box: _Box, panel: Panel, figure: Figure, names: Sequence[str]) -> None:
    lines = [mark for mark in panel.marks if isinstance(mark, Line)]
    points = [point for line in lines for point in line.points]
    left, right, top, bottom = box.left + 52, box.right - 12, box.top + 40, box.bottom - 50
    values = [v for point in points for v in (point.mean, point.low, point.high) if math.isfinite(v)]
    y_axis = _y_axis(values, bottom, top)
    marks = sorted({point.x for point in points})
    x_axis, zero = _x_axis(marks, left + 14, right - 14, figure.log)
    pen.text(box.left, box.top + 14, panel.title, 17, INK, "lm")
    for mark in y_axis.ticks():
        y = y_axis.place(mark)
        pen.line([(left, y), (right, y)], _RULE, 1)
        pen.text(left - 8, y, number(round(mark, 9)), _SMALL, _SOFT, "rm")
    pen.line([(left, bottom), (right, bottom)], _SOFT, 1)
    taken = -math.inf
    for mark in marks:
        x, text = x_axis.place(zero if mark == 0 and figure.log else mark), number(mark)
        pen.line([(x, bottom), (x, bottom + 5)], _SOFT, 1)
        half = font(_SMALL).getlength(text) / 2
        if x - half > taken + 6:
            pen.text(x, bottom + 16, text, _SMALL, _SOFT, "mm")
            taken = x + half
    pen.text((left + right) / 2, bottom + 38, figure.x, _TEXT, _SOFT, "mm")
    places = {name: index for index, name in enumerate(names)}
    crowded = len(names) > _MOST_BANDS

    def at(line: Line) -> list[tuple[float, Point]]:
        aside = _ASIDE * (places.get(line.name, 0) - (len(names) - 1) / 2) if crowded else 0.0
        return [(x_axis.place(zero if p.x == 0 and figure.log else p.x) + aside, p) for p in line.points]

    for line in lines:
        stroke = stroke_of(places.get(line.name, 0))
        bounded = [(x, p) for x, p in at(line) if math.isfinite(p.low)]
        upper = [(x, y_axis.place(p.high)) for x, p in bounded]
        lower = [(x, y_axis.place(p.low)) for x, p in reversed(bounded)]
        if len(bounded) > 1 and not crowded:
            pen.area([*upper, *lower], stroke.color, 34)
        pen.dashes([(x, y_axis.place(p.mean)) for x, p in at(line)], stroke, 2.4)
    for line in lines:
        stroke = stroke_of(places.get(line.name, 0))
        for x, p in at(line):
            if math.isfinite(p.low) and (len(line.points) == 1 or crowded):
                pen.line([(x, y_axis.place(p.low)), (x, y_axis.place(p.high))], stroke.color, 1.4)
            pen.mark(x, y_axis.place(p.mean), 5.5, stroke)


def _y_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """Round values at both ends."""
    low, high = min(values), max(values)
    step = nice(max(high - low, 1e-3 * max(abs(high), 1e-6)) / 4)
    return Axis(math.floor(low / step) * step, math.ceil(high / step + 1e-9) * step, start, end, log=False)


def _x_axis(marks: Sequence[float], start: float, end: float, log: bool) -> tuple[Axis, float]:
    """The axis, and the place at which zero is drawn on a logarithmic one."""
    positive = [mark for mark in marks if mark > 0] or [1.0]
    zero = min(positive) / 10
    low, high = (zero if log and 0 in marks else min(marks)), max(marks)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    return Axis(low, high, start, end, log=log), zero


def _key_rows(names: Sequence[str], width: float) -> list[list[str]]:
    rows: list[list[str]] = []
    used = math.inf
    for name in names:
        advance = 58 + font(_TEXT).getlength(name)
        if used + advance > width:
            rows.append([])
            used = 0
        rows[-1].append(name)
        used += advance
    return rows


def _draw_key(pen: _Pen, rows: Sequence[Sequence[str]], names: Sequence[str], top: float) -> None:
    for index, row in enumerate(rows):
        x, y = float(_MARGIN), top + 26 * index
        for name in row:
            stroke = stroke_of(list(names).index(name))
            pen.dashes([(x, y), (x + 30, y)], stroke, 3)
            pen.mark(x + 15, y, 5, stroke)
            pen.text(x + 38, y, name, _TEXT, INK, "lm")
            x += 58 + font(_TEXT).getlength(name)


def _wrapped(text: str, width: float, size: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font(size).getlength(longer) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _fitted(text: str, width: float, size: int) -> str:
    if font(size).getlength(text) <= width:
        return text
    while text and font(size).getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


@cache
def font(size: int) -> Font:
    """Pillow's own."""
    return ImageFont.load_default(size)
