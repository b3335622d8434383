"""Which cells of a table go where in its figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from partcraft_lit.commands.table.columns import Column
from partcraft_lit.commands.table.comparison import Cell
from partcraft_lit.commands.table.settings import ProtocolSettings
from partcraft_lit.report.table_figure import Bar, Figure, Line, Panel, Point

Cells = Mapping[str, Mapping[str, Cell]]


def panels_of(table: ProtocolSettings, columns: Sequence[Column], cells: Cells) -> Figure:
    """Bars, lines along the rows, or lines along the columns, as the protocol says; a panel for each network.

    Args:
        table: the protocol.
        columns: of the table.
        cells: title of a column -> row -> cell.
    """
    panels: list[Panel] = []
    for wanted in table.figure.panels:
        if table.figure.kind == "columns":
            of_panel = [column for column in columns if column.chosen.panel == wanted]
            for key in dict.fromkeys(column.key for column in of_panel):
                some = [column for column in of_panel if column.key == key]
                panels.append(Panel(_title(wanted, some[0]), _lines_of_columns(some, cells)))
            continue
        for column in columns:
            if column.name == wanted:
                of_column = cells[column.title]
                marks = _bars(of_column) if table.figure.kind == "bars" else _lines_of_rows(table, of_column)
                panels.append(Panel(_title(wanted, column), marks))
    return Figure(panels, table.figure.x, table.figure.log)


def _title(name: str, column: Column) -> str:
    network = column.key.partition("@")[2]  # what is measured, the name says
    return name + (f", {network}" if network else "") + ("" if column.chosen.higher else " (lower is better)")


def _bars(cells: Mapping[str, Cell]) -> list[Bar | Line]:
    return [
        Bar(row, cell.mean, cell.low, cell.high, cell.best and cell.distinct)
        for row, cell in cells.items()
        if math.isfinite(cell.mean)
    ]


def _lines_of_rows(table: ProtocolSettings, cells: Mapping[str, Cell]) -> list[Bar | Line]:
    curves: dict[str, list[Point]] = {}
    for row, cell in cells.items():
        x = table.rows[row].x
        if x is not None and math.isfinite(cell.mean):
            curves.setdefault(table.rows[row].curve, []).append(Point(x, cell.mean, cell.low, cell.high))
    return _sorted(curves)


def _lines_of_columns(columns: Sequence[Column], cells: Cells) -> list[Bar | Line]:
    curves: dict[str, list[Point]] = {}
    for column in columns:
        x = column.chosen.x
        for row, cell in cells[column.title].items():
            if x is not None and math.isfinite(cell.mean):
                curves.setdefault(row, []).append(Point(x, cell.mean, cell.low, cell.high))
    return _sorted(curves)


def _sorted(curves: Mapping[str, Sequence[Point]]) -> list[Bar | Line]:
    return [Line(name, sorted(points, key=lambda point: point.x)) for name, points in curves.items()]
