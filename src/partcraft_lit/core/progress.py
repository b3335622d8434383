"""Logs what a run is doing, and keeps the seconds of its stages."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from partcraft_lit.core import stopping
from partcraft_lit.core.environment import is_first_process

_log = logging.getLogger("partcraft_lit")


class Stages:
    """Named stages with their seconds; a line when one ends, a bar while one counts.

    Only the first process of a run logs.

    Attributes:
        seconds: name -> seconds, in order.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.seconds: dict[str, float] = {}
        self._console = console or Console(quiet=not is_first_process())

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[Counter]:
        """Times what happens inside; hands out a counter to report progress with.

        Args:
            name: of the stage; seconds of all stages of one name are added up.
            detail: tells stages of one name apart on the console.
        """
        stopping.check()
        started = time.monotonic()
        progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28, complete_style="cyan", finished_style="cyan"),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        with progress:
            yield Counter(name, progress)
        stopping.check()
        spent = time.monotonic() - started
        self.seconds[name] = self.seconds.get(name, 0.0) + spent
        self.log(f"{name}{f', {detail}' if detail else ''}: {spent:.1f} s")

    def log(self, message: str) -> None:
        """A line for the person at the terminal, and for the log file of the run."""
        self._console.print(message, highlight=False, markup=False, soft_wrap=True)
        _log.debug(message)


class Counter:
    """Tasks of one stage in rich's progress bar, which is shown on a terminal and nowhere else."""

    def __init__(self, name: str, progress: Progress) -> None:
        self._name, self._progress = name, progress
        self._tasks: dict[str, TaskID] = {}

    def part(self, part: str, done: int, total: int) -> None:
        """``done`` of ``total`` of some part of the stage."""
        if part not in self._tasks:
            label = f"{self._name}: {part}" if part else self._name
            self._tasks[part] = self._progress.add_task(label, total=total)
        self._progress.update(self._tasks[part], completed=done, total=total)

    def count(self, done: int, total: int) -> None:
        """``done`` of ``total`` of the whole stage."""
        self.part("", done, total)
