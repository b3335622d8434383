"""Which numbers a setting may have."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Range:
    """Which numbers are allowed; used as ``Annotated[int, Range(1)]``."""

    low: float = -math.inf
    high: float = math.inf
    #: Whether ``low`` itself is excluded.
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{'above' if self.above else 'of at least'} {self.low:g}"
        return f"{'above' if self.above else 'from'} {self.low:g} {'up to' if self.above else 'to'} {self.high:g}"
