"""Which cells of a table go where in its figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from partcraft_lit.report.figure import Bar, Figure, Line, Panel, Point
from partcraft_lit.run.comparing import Cell
from partcraft_lit.settings import ProtocolSettings

Cells = Mapping[str, Mapping[str, Cell]]


def panels_of(table: ProtocolSettings, cells: Cells) -> Figure:
    """Bars, lines along the rows, or lines along the columns, as the protocol says."""
    kind, wanted = table.figure.kind, table.figure.panels
    if kind == "bars":
        panels = [Panel(name, _bars(cells[name])) for name in wanted]
    elif kind == "lines":
        panels = [Panel(name, _lines_of_rows(table, cells[name])) for name in wanted]
    else:
        panels = [Panel(name, _lines_of_columns(table, cells, name)) for name in wanted]
    return Figure(panels, table.figure.x, table.figure.log)


def _bars(cells: Mapping[str, Cell]) -> list[Bar | Line]:
    return [
        Bar(row, cell.mean, cell.low, cell.high, cell.best) for row, cell in cells.items() if math.isfinite(cell.mean)
    ]


def _lines_of_rows(table: ProtocolSettings, cells: Mapping[str, Cell]) -> list[Bar | Line]:
    curves: dict[str, list[Point]] = {}
    for row, cell in cells.items():
        x = table.rows[row].x
        if x is not None and math.isfinite(cell.mean):
            curves.setdefault(table.rows[row].curve, []).append(Point(x, cell.mean, cell.low, cell.high))
    return _sorted(curves)


def _lines_of_columns(table: ProtocolSettings, cells: Cells, panel: str) -> list[Bar | Line]:
    curves: dict[str, list[Point]] = {}
    for name, column in table.columns.items():
        if column.panel != panel or column.x is None:
            continue
        for row, cell in cells[name].items():
            if math.isfinite(cell.mean):
                curves.setdefault(row, []).append(Point(column.x, cell.mean, cell.low, cell.high))
    return _sorted(curves)


def _sorted(curves: Mapping[str, Sequence[Point]]) -> list[Bar | Line]:
    return [Line(name, sorted(points, key=lambda point: point.x)) for name, points in curves.items()]
