"""Runs commands as processes of their own, several at once; a failure does not stop the others."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from partcraft_lit.core import rundir

LOG = "job.log"
_POLL_S = 0.2
#: How long a process may take to write its checkpoint after an interrupt.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Step:
    """A command, and whether its result is there."""

    command: tuple[str, ...]
    is_done: Callable[[], bool]


@dataclass(frozen=True)
class Task:
    """Steps that follow one another.

    Attributes:
        name: for messages.
        folder: where the steps work; while another process holds it, the task waits. Their output goes to ``job.log``.
        steps: one after the other; those that are done are skipped.
    """

    name: str
    folder: Path
    steps: tuple[Step, ...]

    def is_done(self) -> bool:
        return all(step.is_done() for step in self.steps)


def run_tasks(tasks: Sequence[Task], jobs: int, log: Callable[[str], None], gpus: Sequence[int] = ()) -> dict[str, str]:
    """Runs what is not done yet.

    Args:
        tasks: in the order in which they start.
        jobs: processes at once; each computes on its share of the cores.
        log: receives a line for every end.
        gpus: CUDA devices, dealt out to the processes in turn; empty leaves their environment as it is.

    Returns:
        Name of each task that failed -> the end of its output.
    """
    waiting = [task for task in tasks if not task.is_done()]
    if not waiting:
        return {}
    done = len(tasks) - len(waiting)
    log(f"{done} of {len(tasks)} jobs are done; {len(waiting)} to do, {jobs} at once.")
    errors: dict[str, str] = {}
    queue, processes = _Queue(waiting), _Processes()

    def work(slot: int) -> None:
        nonlocal done
        environment = _environment(jobs, slot, gpus)
        while (task := queue.next()) is not None:
            started = time.monotonic()
            error = processes.run(task, environment)
            with queue.lock:
                done += 1
                if error is not None:
                    errors[task.name] = error
                outcome = "done" if error is None else "FAILED"
                log(f"[{done}/{len(tasks)}] {task.name}: {outcome} in {time.monotonic() - started:.0f} s")

    with _terminated_as_interrupted(), ThreadPoolExecutor(jobs) as pool:
        try:
            for worker in as_completed([pool.submit(work, slot) for slot in range(jobs)]):
                worker.result()
        except BaseException:
            queue.clear()
            processes.interrupt()
            raise
    return errors


class _Queue:
    """Tasks in order, but for those whose folder another process holds: these wait."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.lock = threading.Lock()
        self._tasks = list(tasks)

    def next(self) -> Task | None:
        """The next task; None when there is none left."""
        while True:
            with self.lock:
                task = next((task for task in self._tasks if not rundir.in_use(task.folder)), None)
                if task is not None:
                    self._tasks.remove(task)
                    return task
                if not self._tasks:
                    return None
            time.sleep(_POLL_S)

    def clear(self) -> None:
        with self.lock:
            self._tasks.clear()


class _Processes:
    """Those that run now, so that an interrupt reaches them all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, task: Task, environment: Mapping[str, str]) -> str | None:
        """Runs the steps that are not done; returns None, or the end of the output of the one that failed."""
        task.folder.mkdir(parents=True, exist_ok=True)
        with (task.folder / LOG).open("ab") as log:
            for step in task.steps:
                if step.is_done():
                    continue
                start = log.tell()
                code = self._run(step.command, log.fileno(), environment)
                if code != 0 or not step.is_done():
                    log.seek(0, os.SEEK_END)
                    return _last_lines(task.folder, start) or f"It ended with code {code} and without any output."
        return None

    def _run(self, command: Sequence[str], output: int, environment: Mapping[str, str]) -> int:
        with self._lock:
            if self._stopped:
                return -signal.SIGINT
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=dict(environment))
            self._running.add(process)
        try:
            return process.wait()
        finally:
            with self._lock:
                self._running.discard(process)

    def interrupt(self) -> None:
        """Interrupts all, waits for their checkpoints, and kills those that take too long."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _last_lines(folder: Path, start: int, most: int = 12) -> str:
    """The message of a failed command, else the last lines of its output; the output begins at byte ``start``."""
    try:
        with (folder / LOG).open("rb") as file:
            file.seek(start)
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return f"Its folder {folder} was removed while it ran."
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    messages = [index for index, line in enumerate(lines) if line.startswith("partcraft: ")]
    return "\n".join(lines[messages[-1] :] if messages and "Traceback" not in text else lines[-most:])


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
    """SIGTERM becomes a KeyboardInterrupt, so that it is passed on to the processes."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # signals can only be caught in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def python_command(*arguments: str) -> tuple[str, ...]:
    """``python -m partcraft_lit ...`` with this Python."""
    return (sys.executable, "-m", "partcraft_lit", *arguments)
