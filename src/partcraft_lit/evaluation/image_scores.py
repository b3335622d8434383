"""One line per scored image: ``scores.csv``, from which tables are made and by which they are verified."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write

FILE_NAME = "scores.csv"
_NETWORKS = "networks.json"
_JUDGES = "judges.json"
#: Columns that say what an image is; all others are scores.
METADATA = ("protocol", "index", "seed", "prompt", "image", "asked", "found")
#: Before the name of a score: that of the true drawing of the same request.
TRUE_DRAWING = "true_"
#: Before the name of a part, or "all": the error of part accuracy less that of the true drawing.
EXCESS_ERROR = "excess_error/"
#: Columns, and numbers of ``scores.json``, that older runs were scored without; beginnings of their names.
_YOUNGER = (f"{TRUE_DRAWING}part_accuracy/", EXCESS_ERROR, "truth/excess_error@")
#: Two computations of a score may differ by this much: codes are whole numbers, cosines are rounded.
TOLERANCE = 1e-4
#: The same for numbers of whole sets, which have sizes of their own.
RELATIVE_TOLERANCE = 1e-3

Row = dict[str, Any]


def rows_of_images(
    protocol: str, prompts: Sequence[str], seeds: Sequence[int], paths: Sequence[Path], folder: Path
) -> list[Row]:
    """A line per image with what it is, without scores; paths are relative to ``folder``.

    Raises:
        ValueError: if there is not one prompt, seed and path per image.
    """
    return [
        {
            "protocol": protocol,
            "index": index,
            "seed": seed,
            "prompt": prompt,
            "image": str(path.relative_to(folder)),
        }
        for index, (prompt, seed, path) in enumerate(zip(prompts, seeds, paths, strict=True))
    ]


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes all lines in one step; scores with six digits, NaN as an empty cell."""
    columns = [*METADATA, *dict.fromkeys(key for row in rows for key in row if key not in METADATA)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_cell(row.get(column, "")) for column in columns] for row in rows])
    atomic_write(path, text.getvalue())


def read_rows(path: Path) -> list[Row]:
    """What ``write_rows`` wrote: metadata as text, scores as floats.

    Raises:
        UserError: if the file is missing or is not such a table.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.DictReader(file))
        return [{key: value if key in METADATA else _number(value) for key, value in line.items()} for line in lines]
    except FileNotFoundError:
        raise UserError(f"{path} is missing: score the run first (partcraft evaluate run={path.parent}).") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not a table of scores ({error}). Delete it and score the run again.") from error


def differences(stored: Sequence[Row], computed: Sequence[Row]) -> list[str]:
    """What two tables disagree on, one sentence each; columns that only one of them has are compared too.

    A column that is younger than the whole stored table is none of its disagreements.
    """
    unknown = _younger((key for row in computed for key in row), {key for row in stored for key in row})
    ours = {_key(row): row for row in computed}
    theirs = {_key(row): row for row in stored}
    wrong = [f"{_where(row)} is not in the table." for key, row in ours.items() if key not in theirs]
    wrong += [f"{_where(row)} cannot be computed again." for key, row in theirs.items() if key not in ours]
    for key in ours.keys() & theirs.keys():
        for column in METADATA:
            before, value = (str(row[key].get(column, "")) for row in (theirs, ours))
            if before != value:
                wrong.append(f"{_where(ours[key])}: {column} is {before!r} in the table, computed again {value!r}.")
        for column in (ours[key].keys() | theirs[key].keys()).difference(METADATA, unknown):
            before, value = (row[key].get(column, math.nan) for row in (theirs, ours))
            if not _same(before, value):
                wrong.append(f"{_where(ours[key])}: {column} is {before:.4f} in the table, computed again {value:.4f}.")
    return sorted(wrong)


def stored_scores(run_folder: Path, evaluation: Path) -> dict[str, float]:
    """The scores of an evaluation; those for the run's own settings may have been left by its training.

    Args:
        run_folder: of the run.
        evaluation: inside it.
    """
    scores = _scores_in(run_folder / "scores.json") if evaluation == run_folder / "evaluation" else {}
    return scores | _scores_in(evaluation / "scores.json")


def write_networks(evaluation: Path, names: Sequence[str]) -> None:
    """Which rows of the group ``metrics`` have scored the images."""
    atomic_write(evaluation / _NETWORKS, json.dumps(list(names)) + "\n")


def read_networks(evaluation: Path) -> list[str] | None:
    """What ``write_networks`` wrote; None if nothing did."""
    return _names_in(evaluation / _NETWORKS)


def write_judges(evaluation: Path, names: Sequence[str]) -> None:
    """Which rows of the group ``judges`` have judged the images; no file without any."""
    path = evaluation / _JUDGES
    if names:
        atomic_write(path, json.dumps(list(names)) + "\n")
    else:
        path.unlink(missing_ok=True)


def read_judges(evaluation: Path) -> list[str]:
    """What ``write_judges`` wrote."""
    return _names_in(evaluation / _JUDGES) or []


def _names_in(path: Path) -> list[str] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return [str(name) for name in content] if isinstance(content, list) else None


def _scores_in(path: Path) -> dict[str, float]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict):
        return {}
    return {str(key): math.nan if value is None else float(value) for key, value in content.items()}


def score_differences(stored: Mapping[str, float], computed: Mapping[str, float]) -> list[str]:
    """Numbers that are not what was computed again, or cannot be computed again, one sentence each."""
    wrong = []
    unknown = _younger(computed, stored)
    for key in dict.fromkeys([*computed, *stored]):
        if key in unknown:
            continue
        before, value = stored.get(key, math.nan), computed.get(key, math.nan)
        if not _close(before, value):
            wrong.append(f"{key} is {before:.6g} there, computed again {value:.6g}.")
    return wrong


def _younger(computed: Iterable[str], stored: Container[str]) -> set[str]:
    """Names that an older version did not write."""
    return {key for key in computed if key.startswith(_YOUNGER) and key not in stored}


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
