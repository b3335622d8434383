"""What a job leaves for the scheduler that started it: that it is done, and the value that a sweeper asks for.

The job writes it itself, as its last act and in one step, so it is there whatever becomes of the scheduler.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from partcraft_lit.core.files import atomic_write

FILE_NAME = "job_result.json"
#: In the environment of a job: its key. A command without it writes no result.
KEY_VARIABLE = "PARTCRAFT_LIT_JOB"
#: In the environment of a job: the folder of its sweep.
SWEEP_VARIABLE = "PARTCRAFT_LIT_SWEEP"


#: Name of a score, or several.
Objective = str | list[str] | None


@dataclass(frozen=True)
class JobResult:
    """Key of a job, the objective that it was asked for, and what its command returned: a number, or some by name."""

    key: str
    objective: Objective = None
    value: float | list[float] | dict[str, float] | None = None


def write_result(folder: Path, objective: Objective, returned: Any) -> None:
    """In a job: that it is done, and what it returned; does nothing in a command of its own."""
    if (key := os.environ.get(KEY_VARIABLE)) is not None:
        result = JobResult(key, objective, _numbers(returned))
        atomic_write(folder / FILE_NAME, json.dumps(asdict(result), indent=1) + "\n")


def read_result(folder: Path) -> JobResult | None:
    """None if the job is not done."""
    try:
        values = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        return JobResult(values["key"], values["objective"], values["value"])
    except (OSError, ValueError, TypeError, KeyError):
        return None


def is_done(folder: Path, key: str, objective: Objective) -> bool:
    """Whether a folder holds the result of this very job."""
    result = read_result(folder)
    return result is not None and (result.key, result.objective) == (key, objective)


def scores_of(folder: Path) -> dict[str, float]:
    """Every finite number of a job: those of its ``scores.json``, else what its command returned."""
    found = _numbers(_read_json(folder / "scores.json"))
    if found is None and (result := read_result(folder)) is not None:
        found = result.value
    return found if isinstance(found, dict) else {"value": found} if isinstance(found, float) else {}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _numbers(value: Any) -> float | list[float] | dict[str, float] | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        named = {str(key): number for key, item in value.items() if isinstance(number := _numbers(item), float)}
        return named or None
    if isinstance(value, list | tuple):
        several = [number for item in value if isinstance(number := _numbers(item), float)]
        return several if several and len(several) == len(value) else None
    return None
