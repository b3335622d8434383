"""One task from its start to its end: its folder held, its commands supervised, its entries in the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from partcraft_lit.core.stopping import SCHEDULED_VARIABLE, TIME_LIMIT_CODE
from partcraft_lit.scheduling import supervisor
from partcraft_lit.scheduling.ledger import Entry, Ledger, Status
from partcraft_lit.scheduling.tasks import LOG, Task, last_lines

#: How long a command may take to write its checkpoint after a signal.
PATIENCE_S = 30.0
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")
#: Exit codes of commands that a signal ended, which is not a failure.
_STOPPED = frozenset(128 + getattr(signal, name) for name in _SIGNALS if hasattr(signal, name))
_KILLED = "It was killed (SIGKILL): by a person, or by the system for lack of memory."
#: Cores that a pool gave to this process.
_SHARE = "PARTCRAFT_CORES"
#: Set by the command line for itself: a job is a command of its own.
_NOT_INHERITED = ("HYDRA_FULL_ERROR",)


@dataclass(frozen=True)
class TaskResult:
    """How a task ended; ``error`` is the end of the output unless it ended well, ``code`` the exit code."""

    seconds: float
    error: str | None = None
    code: int = 0

    @property
    def status(self) -> Status:
        if self.error is None:
            return "done"
        return "stopped" if self.at_time_limit or self.code in _STOPPED else "failed"

    @property
    def at_time_limit(self) -> bool:
        """Whether it ended at ``trainer.max_time``, by itself: it goes on when it is started again."""
        return self.code == TIME_LIMIT_CODE


class Processes:
    """The commands that run now, so that a signal reaches them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self.stopped_by: int | None = None

    def run(self, command: tuple[str, ...], output: int, environment: Mapping[str, str], held: int) -> int:
        """Runs a command under a supervisor; returns its exit code, 128 + N if signal N ended it.

        Args:
            command: its arguments.
            output: open file for its output.
            environment: all its variables.
            held: open file that the supervisor keeps open until the command has ended, for the lock that it holds.
        """
        with self._lock:
            if self.stopped_by is not None:
                return 128 + self.stopped_by
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, str(PATIENCE_S), *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # a terminal's interrupt comes once, from us
                pass_fds=(held,) if os.name == "posix" else (),
            )
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)
            if process.stdin is not None:
                process.stdin.close()

    def stop(self, number: int) -> None:
        """Passes a signal on, and starts nothing more. The supervisors see to it that every command ends."""
        with self._lock:
            self.stopped_by = number
            for process in self._running:
                process.send_signal(number)


def run_task(
    task: Task,
    environment: Mapping[str, str],
    held: int,
    ledger: Ledger | None,
    run: Callable[[tuple[str, ...], int, Mapping[str, str], int], int],
    cluster_id: str = "",
) -> TaskResult:
    """Runs the steps of a task that are not done.

    Args:
        task: what to run.
        environment: variables of its commands, beside the task's own.
        held: lock on the task's folder.
        ledger: gets a line for the start and one for the end; None for none.
        run: see :meth:`Processes.run`.
        cluster_id: number of the job at a cluster in which this runs.
    """
    started = time.monotonic()
    if ledger is not None:
        ledger.append(entry_of(task, ledger, "running", cluster_id=cluster_id))
    code, error = _run_steps(task, {**environment, **task.environment}, held, run)
    end = TaskResult(round(time.monotonic() - started, 3), error, code)
    if ledger is not None:
        message = (error or "") if end.status == "failed" or end.at_time_limit else ""
        more = {"code": code, "seconds": end.seconds, "message": message, "cluster_id": cluster_id}
        ledger.append(entry_of(task, ledger, end.status, **more))
    return end


def entry_of(task: Task, ledger: Ledger, status: Status, **more: Any) -> Entry:
    """A line of the ledger on a task."""
    return Entry(task.key, task.name, status, ledger.relative(task.folder), dict(task.parameters), **more)


def note_done(ledger: Ledger, tasks: Sequence[Task]) -> None:
    """Writes down which tasks ended well when the scheduler that had started them was gone."""
    known = ledger.latest()
    for task in tasks:
        if task.key in known and known[task.key].status != "done" and task.is_done():
            ledger.append(entry_of(task, ledger, "done", code=0))


def _run_steps(
    task: Task, environment: Mapping[str, str], held: int, run: Callable[..., int]
) -> tuple[int, str | None]:
    """Exit code, and None or the end of the output of the step that failed."""
    whole = {key: value for key, value in environment.items() if key not in _NOT_INHERITED}
    whole[SCHEDULED_VARIABLE] = "1"
    with (task.folder / LOG).open("ab") as log:
        for step in task.steps:
            if step.is_done():
                continue
            start = log.tell()
            code = run(step.command, log.fileno(), whole, held)
            if code != 0 or not step.is_done():
                log.seek(0, os.SEEK_END)
                message = last_lines(task.folder, start) or f"It ended with code {code} and without any output."
                return code, f"{message}\n{_KILLED}" if code in (137, -signal.SIGKILL) else message
    return 0, None


def environment_of(jobs: int, devices: str | None) -> dict[str, str]:
    """That of this process, with the CUDA devices of the slot, and the threads of one share of the cores.

    A pool that is itself a job of a pool divides the cores of its share. ``OMP_NUM_THREADS`` of this process stands if
    it is less: on a machine that others use too, threads wait for each other, and two on busy cores may take longer
    than one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share, given = max(1, int(os.environ.get(_SHARE) or cores) // jobs), os.environ.get("OMP_NUM_THREADS", "")
    threads = str(min(share, int(given)) if given.isdecimal() and int(given) > 0 else share)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    environment[_SHARE] = str(share)
    if devices is not None:
        environment["CUDA_VISIBLE_DEVICES"] = devices
    return environment
