"""Tasks as processes on this machine, several at once; a failure does not stop the others."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from partcraft_lit.core import rundir, stopping
from partcraft_lit.scheduling.gpus import deal
from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.locks import try_lock
from partcraft_lit.scheduling.running import Processes, environment_of, note_done, run_task
from partcraft_lit.scheduling.settings import PoolSettings
from partcraft_lit.scheduling.tasks import Outcome, Task

_POLL_S = 0.2


def run_in_pool(
    tasks: Sequence[Task],
    settings: PoolSettings,
    log: Callable[[str], None],
    ledger: Ledger | None = None,
    gpus_each: int = 1,
) -> Outcome:
    """Runs what is not done yet.

    Args:
        tasks: in the order in which they start.
        settings: how many at once, on which GPUs.
        log: receives a line for every end.
        ledger: where starts and ends are written; None for nowhere.
        gpus_each: GPUs of one task; 0 leaves all of them to each.

    Raises:
        Stopped: after a signal, which has been passed on to the commands; all of them have ended by then.
    """
    waiting = [task for task in tasks if not task.is_done()]
    if not waiting:
        log(f"All {len(tasks)} jobs are done.")
        return Outcome()
    devices = deal(settings.gpus, gpus_each)
    jobs = settings.jobs or max(len(devices), 1)
    done = len(tasks) - len(waiting)
    log(f"{done} of {len(tasks)} jobs are done; {len(waiting)} to do, {jobs} at once.")
    errors: dict[str, str] = {}
    at_limit: dict[str, str] = {}
    queue, processes = _Queue(waiting), Processes()

    def work(slot: int) -> None:
        nonlocal done
        environment = environment_of(jobs, devices[slot % len(devices)] if devices else None)
        while (taken := queue.next()) is not None:
            task, held = taken
            try:
                end = None
                if not task.is_done():
                    end = run_task(task, environment, held, ledger, processes.run)
                elif ledger is not None:  # another scheduler's, which may have been killed meanwhile
                    note_done(ledger, [task])
            finally:
                os.close(held)
            with queue.lock:
                done += 1
                if end is None:
                    log(f"[{done}/{len(tasks)}] {task.name}: done by another process")
                    continue
                if end.error is not None:
                    (at_limit if end.at_time_limit else errors)[task.name] = end.error
                outcome = {"done": "done in", "failed": "FAILED after", "stopped": "stopped after"}[end.status]
                log(f"[{done}/{len(tasks)}] {task.name}: {outcome} {end.seconds:.0f} s")

    with stopping.caught(), ThreadPoolExecutor(jobs) as pool:
        try:
            for worker in as_completed([pool.submit(work, slot) for slot in range(jobs)]):
                worker.result()
        except BaseException as error:
            queue.clear()
            # SIGUSR1 is for this process alone: a job of a cluster is queued again once.
            stopped = isinstance(error, stopping.Stopped) and error.number != signal.SIGINT
            processes.stop(signal.SIGTERM if stopped else signal.SIGINT)
            raise
    return Outcome(errors, at_limit)


class _Queue:
    """Tasks in order, but for those whose folder another process holds: these wait."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self.lock = threading.Lock()
        self._tasks = list(tasks)

    def next(self) -> tuple[Task, int] | None:
        """The next task and the lock on its folder; None when there is no task left."""
        while True:
            with self.lock:
                if not self._tasks:
                    return None
                for task in self._tasks:
                    if not rundir.in_use(task.folder) and (held := try_lock(task.folder)) is not None:
                        self._tasks.remove(task)
                        return task, held
            time.sleep(_POLL_S)

    def clear(self) -> None:
        with self.lock:
            self._tasks.clear()
