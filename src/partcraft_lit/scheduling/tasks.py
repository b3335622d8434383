"""What a scheduler runs: commands, how their ends are recognised, what they leave behind."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from partcraft_lit.core.errors import UserError

#: In the folder of a task: the output of its commands.
LOG = "job.log"
_MOST_LINES = 12


@dataclass(frozen=True)
class Step:
    """A command, and whether its result is there."""

    command: tuple[str, ...]
    is_done: Callable[[], bool]


@dataclass(frozen=True)
class Task:
    """Steps that follow one another.

    Attributes:
        name: for messages; no other task has it.
        folder: where the steps work; while another process holds it, the task waits. Their output goes to ``job.log``.
        steps: one after the other; those that are done are skipped.
        key: hash of what decides the result, for the ledger.
        parameters: what sets it apart from the others, for the ledger; key -> value as it was written.
        environment: variables of its own.
    """

    name: str
    folder: Path
    steps: tuple[Step, ...]
    key: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def is_done(self) -> bool:
        return all(step.is_done() for step in self.steps)


@dataclass(frozen=True)
class Outcome:
    """What became of some tasks; those in no mapping are done.

    Attributes:
        failed: name -> the end of its output.
        stopped: name -> the same, of those that ended at ``trainer.max_time`` and go on when they are started again.
        pending: name -> the number of its job at a cluster whose end is not waited for.
    """

    failed: Mapping[str, str] = field(default_factory=dict)
    stopped: Mapping[str, str] = field(default_factory=dict)
    pending: Mapping[str, str] = field(default_factory=dict)


class JobFailed(UserError):
    """A job of a sweep failed; whoever scheduled it reports it with all the others."""


def last_lines(folder: Path, start: int) -> str:
    """The message of a failed command, else the last lines of its output, which begins at byte ``start`` of the log."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return f"Its folder {folder} was removed while it ran."
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    messages = [index for index, line in enumerate(lines) if line.startswith("partcraft: ")]
    return "\n".join(lines[messages[-1] :] if messages and "Traceback" not in text else lines[-_MOST_LINES:])


def python_command(*arguments: str) -> tuple[str, ...]:
    """``python -m partcraft_lit ...`` with this Python."""
    return (sys.executable, "-m", "partcraft_lit", *arguments)
