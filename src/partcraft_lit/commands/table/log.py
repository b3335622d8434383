"""A finished table, to the loggers that take tables and images (W&B, ...)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from partcraft_lit.commands.table.comparison import Cell
from partcraft_lit.loggers.run_logger import finished

#: Of ``summary.csv``; the difference is to the best row of the column.
CELL_COLUMNS = (
    *("row", "column", "mean", "low", "high", "seeds", "images", "best", "distinct"),
    *("difference", "difference_low", "difference_high", "effect", "p_value", "p_corrected", "reported", "role"),
)
_FIGURES = ("figure.png", "maps.png")


def log_table(
    loggers: Sequence[Logger],
    folder: Path,
    cells: Mapping[str, Mapping[str, Cell]],
    protocol: Mapping[str, Any],
    roles: Mapping[str, str] | None = None,
) -> None:
    """The means as people read them, every cell with its interval, the images, and the protocol as the configuration.

    The files stand by then, so a logger that fails is a warning.

    Args:
        loggers: one that has no ``log_table`` or no ``log_image`` gets the rest.
        folder: of the table; its images are sent.
        cells: column -> row -> cell.
        protocol: everything that decides the numbers.
        roles: column -> "primary" or "secondary"; None where no column is primary.
    """
    with finished(loggers):
        for logger in loggers:
            try:
                _log(logger, folder, cells, protocol, roles or {})
            except Exception as error:  # whatever a service or its client can come up with
                warnings.warn(f"The table did not reach {type(logger).__name__}: {error}", stacklevel=2)


def _log(
    logger: Any,
    folder: Path,
    cells: Mapping[str, Mapping[str, Cell]],
    protocol: Mapping[str, Any],
    roles: Mapping[str, str],
) -> None:
    logger.log_hyperparams(dict(protocol))
    if hasattr(logger, "log_table"):
        logger.log_table("table", columns=["row", *cells], data=_means(cells))
        logger.log_table("cells", columns=list(CELL_COLUMNS), data=_finite(cell_rows(cells, None, roles)))
    if hasattr(logger, "log_image"):
        for name in _FIGURES:
            if (folder / name).is_file():
                logger.log_image(name.removesuffix(".png"), images=[str(folder / name)])
    logger.finalize("success")


def _means(cells: Mapping[str, Mapping[str, Cell]]) -> list[list[Any]]:
    rows = dict.fromkeys(row for column in cells.values() for row in column)
    return [[row, *(_value(column[row].mean) for column in cells.values())] for row in rows]


def cell_rows(
    cells: Mapping[str, Mapping[str, Cell]], rows: Iterable[str] | None, roles: Mapping[str, str]
) -> list[list[Any]]:
    """A line of ``CELL_COLUMNS`` for each cell: by row, or in the order of ``rows``."""
    names = dict.fromkeys(row for column in cells.values() for row in column) if rows is None else rows
    return [
        [row, title, *_cell_values(column[row]), roles.get(title)] for row in names for title, column in cells.items()
    ]


def _cell_values(cell: Cell) -> list[Any]:
    difference = cell.difference
    tested = (None,) * 5 if difference is None else difference[:5]
    measured = (cell.mean, cell.low, cell.high, cell.seeds, cell.images, cell.best, cell.distinct)
    return [*measured, *tested, cell.p_corrected, cell.reported]


def _finite(rows: Sequence[Sequence[Any]]) -> list[list[Any]]:
    return [[_value(value) if isinstance(value, float) else value for value in row] for row in rows]


def _value(value: float) -> float | None:
    return value if math.isfinite(value) else None
