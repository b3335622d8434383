"""What a search may choose from, key by key, and how optuna knows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from optuna.trial import Trial

#: What optuna can store.
Value: TypeAlias = str | int | float | bool


@dataclass(frozen=True)
class Interval:
    """All numbers from ``low`` to ``high``, both included.

    Attributes:
        low, high: its ends.
        log: whether orders of magnitude are equally likely, rather than equal distances.
        whole: whether only whole numbers are meant.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def suggest(self, trial: Trial, key: str) -> Value:
        """The value of a trial, chosen now if it was not before."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)

    def samples(self) -> list[Value]:
        """Values that stand for all: the ends."""
        return [int(end) if self.whole else float(end) for end in (self.low, self.high)]


@dataclass(frozen=True)
class Steps:
    """Evenly spaced numbers, in ascending order; their order means something, unlike that of a choice."""

    values: tuple[int | float, ...]

    def suggest(self, trial: Trial, key: str) -> Value:
        """As for an interval."""
        first, last = self.values[0], self.values[-1]
        step = self.values[1] - first if len(self.values) > 1 else 1
        if all(isinstance(value, int) for value in self.values):
            return trial.suggest_int(key, int(first), int(last), step=int(step))
        if first == last:
            return trial.suggest_float(key, first, last)
        suggested = trial.suggest_float(key, first, last, step=round(step, 12))  # else 0.3 - 0.2 is the step
        return min(self.values, key=lambda value: abs(value - suggested))

    def samples(self) -> list[Value]:
        return list(self.values)


@dataclass(frozen=True)
class Choice:
    """A few values without order; text stands as on the command line."""

    values: tuple[Value, ...]

    def suggest(self, trial: Trial, key: str) -> Value:
        """As for an interval."""
        chosen = trial.suggest_categorical(key, self.values)
        assert chosen is not None  # no choice is None
        return chosen

    def samples(self) -> list[Value]:
        return list(self.values)


Dimension: TypeAlias = Interval | Steps | Choice
Space: TypeAlias = Mapping[str, Dimension]


def representatives(space: Space) -> list[dict[str, Value]]:
    """Few points in which each value of each choice, and each end of each interval, occurs once."""
    samples = {key: dimension.samples() for key, dimension in space.items()}
    first = {key: values[0] for key, values in samples.items()}
    return [first, *({**first, key: value} for key, values in samples.items() for value in values[1:])]


def grid_size(space: Space) -> int | None:
    """Number of points; None with an interval in it that is not of whole numbers."""
    size = 1
    for dimension in space.values():
        values = grid_values(dimension)
        if values is None:
            return None
        size *= len(values)
    return size


def grid_values(dimension: Dimension) -> Sequence[Value] | None:
    """Optuna's values of one key on a grid; None if there are infinitely many."""
    if isinstance(dimension, Steps | Choice):
        return dimension.values
    return range(int(dimension.low), int(dimension.high) + 1) if dimension.whole else None
