"""Commands in processes of their own, several at once: what failed is noted, and the rest goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from partcraft_lit.core import rundir

LOG = "job.log"
_POLL_S = 0.2
#: How long a process may take to write its checkpoint after an interrupt.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Step:
    """A command, and whether it still has something to do."""

    command: tuple[str, ...]
    is_done: Callable[[], bool]


@dataclass(frozen=True)
class Task:
    """Steps that follow one another.

    Attributes:
        name: what a person calls it.
        folder: where the steps work; while another process holds it, the task waits. Their output goes to ``job.log``.
        steps: one after the other; those that are done are passed over.
    """

    name: str
    folder: Path
    steps: tuple[Step, ...]

    def is_done(self) -> bool:
        return all(step.is_done() for step in self.steps)


def run_tasks(tasks: Sequence[Task], jobs: int, say: Callable[[str], None], gpus: Sequence[int] = ()) -> dict[str, str]:
    """Runs what is not done yet.

    Args:
        tasks: in the order in which they start.
        jobs: processes at once; each computes on its share of the cores.
        say: told of every start and end.
        gpus: CUDA devices that the processes get in turn; empty leaves their environment as it is.

    Returns:
        Name of each task that failed -> the end of what it said.
    """
    waiting = [task for task in tasks if not task.is_done()]
    if waiting:
        say(f"{len(tasks) - len(waiting)} of {len(tasks)} jobs stand; {len(waiting)} to do, {jobs} at once.")
    running: dict[int, _Running] = {}
    errors: dict[str, str] = {}
    done = len(tasks) - len(waiting)
    with _terminated_as_interrupted():
        try:
            while waiting or running:
                for slot in [slot for slot in range(jobs) if slot not in running]:
                    task = next((task for task in waiting if not rundir.in_use(task.folder)), None)
                    if task is None:
                        break
                    waiting.remove(task)
                    running[slot] = _Running(task, _environment(jobs, slot, gpus))
                for slot, job in list(running.items()):
                    if not job.ended():
                        continue
                    del running[slot]
                    done += 1
                    if job.error is not None:
                        errors[job.task.name] = job.error
                    outcome = "done" if job.error is None else "FAILED"
                    say(f"[{done}/{len(tasks)}] {job.task.name}: {outcome} in {job.seconds():.0f} s")
                time.sleep(_POLL_S)
        finally:
            for job in running.values():
                job.interrupt()
            for job in running.values():
                job.wait()
    return errors


class _Running:
    """A task with its living process."""

    def __init__(self, task: Task, environment: Mapping[str, str]) -> None:
        self.task = task
        self.error: str | None = None
        self._environment = dict(environment)
        self._started = time.monotonic()
        self._left = list(task.steps)
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._from = 0

    def ended(self) -> bool:
        """Whether all steps are done or one has failed; starts the next step where the last is done."""
        if self._process is None:
            return self._next()
        code = self._process.poll()
        if code is None:
            return False
        step = self._left.pop(0)
        self._process = None
        if code == 0 and step.is_done():
            return self._next()
        self.error = self._last_lines() or f"It ended with code {code} and said nothing."
        self._close()
        return True

    def seconds(self) -> float:
        return time.monotonic() - self._started

    def interrupt(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)

    def wait(self) -> None:
        if self._process is not None:
            try:
                self._process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._close()

    def _next(self) -> bool:
        while self._left and self._left[0].is_done():
            self._left.pop(0)
        if not self._left:
            self._close()
            return True
        if self._log is None:
            self.task.folder.mkdir(parents=True, exist_ok=True)
            self._log = (self.task.folder / LOG).open("ab")
        self._from = self._log.tell()
        self._process = subprocess.Popen(
            self._left[0].command, stdout=self._log, stderr=subprocess.STDOUT, env=self._environment
        )
        return False

    def _close(self) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def _last_lines(self, most: int = 12) -> str:
        try:
            with (self.task.folder / LOG).open("rb") as file:
                file.seek(self._from)
                text = file.read().decode(errors="replace")
        except FileNotFoundError:
            return f"Its folder {self.task.folder} was removed while it ran."
        lines = [line.rstrip() for line in text.splitlines() if line.strip()]
        said = [index for index, line in enumerate(lines) if line.startswith("partcraft: ")]
        return "\n".join(lines[said[-1] :] if said and "bug" not in lines[said[-1]] else lines[-most:])


def _environment(jobs: int, slot: int, gpus: Sequence[int]) -> dict[str, str]:
    """That of this process, with the threads of one share of the cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = str(max(1, cores // jobs))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpus[slot % len(gpus)])
    return environment


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM becomes a KeyboardInterrupt, so that the processes are told."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread, where nothing can be caught
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def python_command(*arguments: str) -> tuple[str, ...]:
    """``python -m partcraft_lit ...`` with this Python."""
    return (sys.executable, "-m", "partcraft_lit", *arguments)
