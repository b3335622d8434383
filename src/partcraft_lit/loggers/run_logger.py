"""What a run asks of its loggers beyond Lightning's interface; those that lack it do without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class RunLogger(Protocol):
    """A logger that keeps final values, and has an end."""

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Values of the run as a whole, by which runs are compared."""
        ...

    def finish(self, *, success: bool) -> None:
        """Nothing comes after; what is called again does nothing."""
        ...


@contextmanager
def finished(loggers: Sequence[object]) -> Iterator[None]:
    """Finishes the loggers at the end, however it comes, so that the next run of this process begins its own."""
    success = False
    try:
        yield
        success = True
    finally:
        for logger in loggers:
            if isinstance(logger, RunLogger):
                logger.finish(success=success)
