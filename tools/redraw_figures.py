"""Draws the figures of finished tables again from their summary.csv, without training: redraw_figures.py [FOLDER ...]

A FOLDER is what ``partcraft table`` wrote, and it or a folder around it is named like its table; all of experiments/ by
default. Only figure.png and figure.svg are written.
"""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path

from partcraft_lit.commands.table.columns import Column
from partcraft_lit.commands.table.comparison import Cell
from partcraft_lit.commands.table.panels import panels_of
from partcraft_lit.commands.table.settings import TableSettings
from partcraft_lit.config import compose, factories, sources
from partcraft_lit.report.table_figure import draw_figure


def read_cells(summary: Path) -> dict[str, dict[str, Cell]]:
    """Title of a column -> row -> cell."""
    cells: dict[str, dict[str, Cell]] = {}
    with summary.open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            mean, low, high = (float(line[key] or math.nan) for key in ("mean", "low", "high"))
            best, distinct = (line.get(key) == "True" for key in ("best", "distinct"))
            cells.setdefault(line["column"], {})[line["row"]] = Cell(
                mean, low, high, int(line["seeds"]), int(line["images"]), best, distinct=distinct
            )
    return cells


def redraw(folder: Path, name: str) -> Path:
    """Writes the figure of the table ``name`` into the folder that holds its summary."""
    values = compose.plain(compose.compose("table", [f"table={name}"]))
    settings = factories.settings_of(TableSettings, values).table
    cells = read_cells(folder / "summary.csv")
    columns = []
    for title in cells:  # "FID (fid@mini-features)" is the column FID
        column = next(column for column in settings.columns if title == column or title.startswith(f"{column} ("))
        columns.append(Column(column, title[len(column) + 2 : -1], settings.columns[column]))
    return draw_figure(folder / "figure.png", settings.question, panels_of(settings, columns, cells))


def main(arguments: list[str]) -> None:
    tables = {path.stem for path in (sources.conf_dir() / "table").glob("*.yaml")}
    given = [Path(argument) for argument in arguments]
    for folder in given or sorted(path.parent for path in Path("experiments").rglob("summary.csv")):
        print(redraw(folder, next(part for part in reversed(folder.resolve().parts) if part in tables)))


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        main(sys.argv[1:])
