"""What a run asks of its loggers beyond Lightning's interface; those that lack it do without."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

#: The axis of every curve: optimizer steps, from 0.
STEP = "trainer/global_step"


@runtime_checkable
class RunLogger(Protocol):
    """A logger that takes everything a run shows, and has an end."""

    def log_hyperparams(self, params: Any) -> None:
        """The configuration, nested."""
        ...

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None: ...

    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        """Images by path or as Pillow's, with ``caption=[...]``."""
        ...

    def log_table(
        self, key: str, columns: list[str] | None = None, data: list[list[Any]] | None = None, **kwargs: Any
    ) -> None:
        """Rows; a cell that is a path is that of an image."""
        ...

    def log_summary(self, values: Mapping[str, float]) -> None:
        """Values of the run as a whole, by which runs are compared."""
        ...

    def log_files(self, kind: str, files: Mapping[str, Path]) -> None:
        """Files to be kept with the run, if the logger was asked to keep any.

        Args:
            kind: what they are: "adapter", "dictionary".
            files: name -> path.
        """
        ...

    def finish(self, *, success: bool) -> None:
        """Nothing comes after; what is called again does nothing."""
        ...


@dataclass(frozen=True)
class Logged:
    """What a service has of a run already.

    Attributes:
        last_step: of its curves; -1 for none.
        counts: key, as the service has it -> how often it was logged.
        stored: our key -> that of the service.
    """

    last_step: int = -1
    counts: Mapping[str, int] = field(default_factory=dict)
    stored: Callable[[str], str] = str

    def count(self, key: str) -> int:
        return self.counts.get(self.stored(key), 0)


@runtime_checkable
class ReplayLogger(RunLogger, Protocol):
    """A logger into which a run can be replayed: made with ``replay=True`` it has no fallback and warns of nothing."""

    @property
    def trouble(self) -> str | None:
        """Why something did not arrive."""
        ...

    def logged(self) -> Logged:
        """What the service has; starts the run if need be."""
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
