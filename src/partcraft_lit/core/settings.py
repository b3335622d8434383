"""Settings that several rooms share, and the ranges of numbers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from partcraft_lit.core.ranges import Range

Count = Annotated[int, Range(0)]
Positive = Annotated[int, Range(1)]
Share = Annotated[float, Range(0, 1)]
NonNegative = Annotated[float, Range(0)]
Rate = Annotated[float, Range(0, above=True)]


@dataclass(frozen=True)
class PathSettings:
    """Where things are written.

    Attributes:
        logs: root of run folders.
        data: where published data sets are fetched to.
        store: root of what is computed once.
    """

    logs: Path
    data: Path
    store: Path
