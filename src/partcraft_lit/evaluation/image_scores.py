"""One line per scored image: ``scores.csv``, from which tables are made and by which they are verified."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write

FILE_NAME = "scores.csv"
_NETWORKS = "networks.json"
#: Columns that are no scores.
FACTS = ("protocol", "index", "seed", "prompt", "image", "asked", "found")
#: Two computations of a score may differ by this much: codes are whole numbers, cosines are rounded.
TOLERANCE = 1e-4
#: The same for numbers of whole sets, which have sizes of their own.
RELATIVE_TOLERANCE = 1e-3

Row = dict[str, Any]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes all lines in one step; scores with six digits, NaN as an empty cell."""
    columns = [*FACTS, *dict.fromkeys(key for row in rows for key in row if key not in FACTS)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(column, "")) for column in columns] for row in rows])
    atomic_write(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """What ``write_rows`` wrote: facts as text, scores as numbers.

    Raises:
        UserError: if the file is missing or is not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        return [{key: value if key in FACTS else _number(value) for key, value in line.items()} for line in lines]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: score the run first (partcraft evaluate run={path.parent}).") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a table of scores ({error}). Delete it and score the run again.") from error


def differences(stored: Sequence[Row], computed: Sequence[Row]) -> list[str]:
    """What two tables disagree on, one sentence each; columns that only one of them has are compared too."""
    ours = {_key(row): row for row in computed}
    theirs = {_key(row): row for row in stored}
    found = [f"{_where(row)} is not in the table." for key, row in ours.items() if key not in theirs]
    found += [f"{_where(row)} cannot be computed again." for key, row in theirs.items() if key not in ours]
    for key in ours.keys() & theirs.keys():
        for column in FACTS:
            before, value = (str(row[key].get(column, "")) for row in (theirs, ours))
            if before != value:
                found.append(f"{_where(ours[key])}: {column} is {before!r} in the table, computed again {value!r}.")
        for column in (ours[key].keys() | theirs[key].keys()).difference(FACTS):
            before, value = (row[key].get(column, math.nan) for row in (theirs, ours))
            if not _same(before, value):
                found.append(f"{_where(ours[key])}: {column} is {before:.4f} in the table, computed again {value:.4f}.")
    return sorted(found)


def stored_scores(run_folder: Path, evaluation: Path) -> dict[str, float]:
    """The numbers of an evaluation; those for the run's own settings may have been left by its training.

    Args:
        run_folder: of the run.
        evaluation: inside it.
    """
    numbers = _numbers(run_folder / "scores.json") if evaluation == run_folder / "evaluation" else {}
    return numbers | _numbers(evaluation / "scores.json")


def write_networks(evaluation: Path, names: Sequence[str]) -> None:
    """Which rows of the group ``metrics`` have scored the images."""
    atomic_write(evaluation / _NETWORKS, json.dumps(list(names)) + "\n")


def read_networks(evaluation: Path) -> list[str] | None:
    """What ``write_networks`` wrote; None if nothing did."""
    try:
        found = json.loads((evaluation / _NETWORKS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [str(name) for name in found] if isinstance(found, list) else None


def _numbers(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(k): math.nan if v is None else float(v) for k, v in found.items()} if isinstance(found, dict) else {}


def score_differences(stored: Mapping[str, float], computed: Mapping[str, float]) -> list[str]:
    """Numbers that are not what was computed again, or cannot be computed again, one sentence each."""
    found = []
    for key in dict.fromkeys([*computed, *stored]):
        before, value = stored.get(key, math.nan), computed.get(key, math.nan)
        if not _close(before, value):
            found.append(f"{key} is {before:.6g} there, computed again {value:.6g}.")
    return found


def _close(stored: float, computed: float) -> bool:
    """A number that was not measured is NaN, or missing."""
    if math.isnan(stored) or math.isnan(computed):
        return math.isnan(computed) and math.isnan(stored)
    return math.isclose(stored, computed, rel_tol=RELATIVE_TOLERANCE, abs_tol=1e-5)


def _key(row: Row) -> tuple[str, int]:
    return str(row["protocol"]), int(row["index"])


def _where(row: Row) -> str:
    return f"{row['protocol']}, image {row['index']}"


def _same(one: float, other: float) -> bool:
    if math.isnan(one) or math.isnan(other):
        return math.isnan(one) and math.isnan(other)
    return abs(one - other) <= TOLERANCE


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6f}"
    return value


def _number(text: str) -> float:
    return float(text) if text else math.nan
