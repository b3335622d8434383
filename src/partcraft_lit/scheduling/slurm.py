"""Tasks as jobs of SLURM, one array for each submission, by submitit.

Submitit writes the batch script, and queues a job again that is preempted or reaches its time limit. What a job came to
is read from its result and the ledger, and whether it is still in the queue from squeue: accounting (sacct) is not
needed.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import locked, make_folder
from partcraft_lit.core.stopping import TIME_LIMIT_CODE
from partcraft_lit.scheduling.ledger import Entry, Ledger
from partcraft_lit.scheduling.locks import try_lock
from partcraft_lit.scheduling.running import PATIENCE_S, Processes, TaskResult, entry_of, environment_of, run_task
from partcraft_lit.scheduling.settings import SlurmSettings
from partcraft_lit.scheduling.tasks import LOG, Outcome, Task

#: Beside the ledger: batch scripts, submissions and the output of the jobs' wrappers.
FOLDER = "slurm"
_COMMANDS = ("sbatch", "srun", "squeue", "scontrol")
#: A job that has left the queue has this many looks for its result to appear on a shared disk.
_LOOKS = 3
_POLL_S = 0.2


def check_slurm() -> None:
    """Before anything starts.

    Raises:
        UserError: if submitit or SLURM's commands are missing.
    """
    if importlib.util.find_spec("submitit") is None:
        raise UserError("SLURM needs submitit: pip install 'partcraft-lit[slurm]'.")
    if missing := [command for command in _COMMANDS if shutil.which(command) is None]:
        raise UserError(
            f"There is no {missing[0]} here: start the command on a machine that submits jobs to SLURM, or use the "
            "pool of processes on this one."
        )


def run_on_slurm(
    tasks: Sequence[Task], settings: SlurmSettings, log: Callable[[str], None], ledger: Ledger, gpus_each: int = 1
) -> Outcome:
    """Submits what is neither done nor in the queue, and waits for all of it if asked to.

    Args:
        tasks: in the order in which they start.
        settings: of the jobs, and whether their end is waited for.
        log: receives a line for every submission and end.
        ledger: where submissions, starts and ends are written; on a disk that all machines share.
        gpus_each: GPUs of one task, where ``settings.gpus`` says nothing and the task takes more than one.

    Raises:
        UserError: if SLURM refuses the jobs.
    """
    check_slurm()
    waiting = {task.key: task for task in tasks if not task.is_done()}
    if not waiting:
        log(f"All {len(tasks)} jobs are done.")
        return Outcome()
    # Of two schedulers that are started at once, the second finds the jobs of the first in the queue.
    make_folder(ledger.folder)
    with locked(ledger.folder / f"{FOLDER}.lock"):
        known, states = ledger.latest(), _queue()
        ids = {key: known[key].cluster_id for key in waiting if key in known and known[key].cluster_id in states}
        new = [task for key, task in waiting.items() if key not in ids]
        log(f"{len(tasks) - len(waiting)} of {len(tasks)} jobs are done, {len(ids)} in the queue.")
        if new:
            ids |= _submit(new, settings, ledger, gpus_each)
    numbers = sorted({number.partition("_")[0] for number in ids.values()})
    if new:
        log(f"Submitted {len(new)} jobs: {', '.join(ids[task.key] for task in new)}.")
    if not settings.wait:
        log(
            f"squeue -j {','.join(numbers)} shows them, scancel {' '.join(numbers)} ends them; each writes to {LOG} "
            "in its folder. The same command again continues, and writes the results once all are done."
        )
        return Outcome(pending={task.name: ids[key] for key, task in waiting.items()})
    try:
        return _wait(waiting, ids, settings, log, ledger, len(tasks))
    except KeyboardInterrupt:
        log(f"The jobs go on in the cluster; scancel {' '.join(numbers)} ends them.")
        raise


def _submit(tasks: Sequence[Task], settings: SlurmSettings, ledger: Ledger, gpus_each: int) -> dict[str, str]:
    """Key -> number of its job."""
    import submitit

    executor = submitit.SlurmExecutor(ledger.folder / FOLDER, max_num_timeout=settings.requeues)
    try:
        executor.update_parameters(**_parameters(settings, ledger, gpus_each))
        with executor.batch():
            jobs = [executor.submit(SlurmTask(task, ledger.folder, settings.cpus)) for task in tasks]
    except (
        ValueError,
        TypeError,
        submitit.core.utils.FailedJobError,
        submitit.core.utils.FailedSubmissionError,
    ) as error:
        raise UserError(f"SLURM does not take the jobs: {str(error).strip()}") from error
    for task, job in zip(tasks, jobs, strict=True):
        ledger.append(entry_of(task, ledger, "submitted", cluster_id=str(job.job_id)))
    return {task.key: str(job.job_id) for task, job in zip(tasks, jobs, strict=True)}


def _parameters(settings: SlurmSettings, ledger: Ledger, gpus_each: int) -> dict[str, Any]:
    named = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
    }
    gpus = settings.gpus if settings.gpus is not None else gpus_each if gpus_each > 1 else None
    found = {
        "job_name": ledger.folder.name,
        "time": settings.minutes,
        "signal_delay_s": settings.warning_s,
        "ntasks_per_node": 1,
        "gpus_per_node": gpus or None,
        "cpus_per_task": settings.cpus,
        # srun takes it from its own options alone
        "srun_args": None if settings.cpus is None else [f"--cpus-per-task={settings.cpus}"],
        "mem": None if settings.mem_gb is None else f"{round(settings.mem_gb * 1024)}M",
        "setup": list(settings.setup) or None,
        "array_parallelism": settings.jobs or 100_000,
        "additional_parameters": {
            **{name: value for name, value in named.items() if value is not None},
            "requeue": True,
            **settings.sbatch,
        },
    }
    return {name: value for name, value in found.items() if value is not None}


class SlurmTask:
    """What runs in a job: the task's commands. It is pickled; submitit calls ``checkpoint`` before a requeue."""

    def __init__(self, task: Task, ledger: Path, cpus: int | None) -> None:
        self.task, self.ledger, self.cpus = task, ledger, cpus
        self._processes: Processes | None = None
        self._ended = False

    def __call__(self) -> str:
        """Returns the status of the task.

        The commands run in a thread, for the main thread has to be free for signals: submitit's, which reaches every
        process of the job, and SIGTERM, which the cluster sends before it takes the machine away or ends the job.
        """
        self._processes, self._ended = Processes(), False
        ends: list[TaskResult | None] = []
        threading.Thread(target=self._run, args=(ends, self._processes), daemon=True).start()
        while not self._ended:
            time.sleep(_POLL_S)
        end = ends[0] if ends else None
        if ends and end is not None and end.status == "stopped" and not end.at_time_limit:
            time.sleep(20 * PATIENCE_S)  # a job that ended by itself now would not be queued again
        if not ends:
            raise RuntimeError(f"The job in {self.task.folder} could not be run; the output above says why.")
        return "done" if end is None else end.status

    def checkpoint(self) -> Any:
        """Lets the command write its checkpoint and end; the same task is queued again."""
        from submitit.helpers import DelayedSubmission

        if self._processes is not None:
            self._processes.stop(signal.SIGTERM)
            while not self._ended:
                time.sleep(_POLL_S)
        return DelayedSubmission(SlurmTask(self.task, self.ledger, self.cpus))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_processes": None, "_ended": False}

    def _run(self, ends: list[TaskResult | None], processes: Processes) -> None:
        try:
            while (held := try_lock(self.task.folder)) is None:
                time.sleep(_POLL_S)
            try:
                environment = _environment(self.cpus)
                ledger = Ledger(self.ledger)
                ends.append(
                    None
                    if self.task.is_done()
                    else run_task(self.task, environment, held, ledger, processes.run, cluster_id=_own_number())
                )
            finally:
                os.close(held)
        finally:
            self._ended = True


def _environment(cpus: int | None) -> dict[str, str]:
    """Without SLURM's variables: Lightning would take the job's one task for the number of processes it may have."""
    found = {
        name: value for name, value in environment_of(1, None).items() if not name.startswith(("SLURM_", "SUBMITIT_"))
    }
    threads = cpus or os.environ.get("SLURM_CPUS_ON_NODE")
    return found if threads is None else found | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


def _own_number() -> str:
    """Number of the job in which this runs, as squeue has it."""
    array, element = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{element}" if array and element else os.environ.get("SLURM_JOB_ID", "")


def _wait(
    waiting: Mapping[str, Task],
    ids: Mapping[str, str],
    settings: SlurmSettings,
    log: Callable[[str], None],
    ledger: Ledger,
    number: int,
) -> Outcome:
    """Until no task is left in the queue."""
    left, looks = dict(waiting), dict.fromkeys(waiting, 0)
    errors: dict[str, str] = {}
    stopped: dict[str, str] = {}
    while left:
        entries, states = ledger.latest(), _queue(default=dict.fromkeys(ids.values(), "UNKNOWN"))
        for key, task in list(left.items()):
            entry = entries.get(key)
            looks[key] = 0 if ids[key] in states else looks[key] + 1
            if task.is_done():
                outcome = "done"
            elif looks[key] and entry is not None and entry.status == "failed" and entry.cluster_id == ids[key]:
                outcome, errors[task.name] = "FAILED", entry.message
            elif looks[key] and entry is not None and entry.code == TIME_LIMIT_CODE and entry.cluster_id == ids[key]:
                outcome, stopped[task.name] = "stopped", entry.message
            elif looks[key] >= _LOOKS:
                outcome, errors[task.name] = "FAILED", _lost(entry, ids[key], ledger)
            else:
                continue
            del left[key]
            seconds = "" if entry is None or entry.seconds is None else f", {entry.seconds:.0f} s"
            log(f"[{number - len(left)}/{number}] {task.name}: {outcome} (job {ids[key]}{seconds})")
        if left:
            time.sleep(settings.poll_s)
    return Outcome(errors, stopped)


def _lost(entry: Entry | None, cluster_id: str, ledger: Ledger) -> str:
    """On a job that left the queue without a result: cancelled, killed for its memory, or its node failed."""
    for path in sorted((ledger.folder / FOLDER).glob(f"{cluster_id}_*_log.err"), reverse=True):
        lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        if lines:
            return f"Job {cluster_id} left the queue without a result. The end of {path}:\n" + "\n".join(lines[-5:])
    stopped = " after it was told to stop" if entry is not None and entry.status == "stopped" else ""
    return f"Job {cluster_id} left the queue without a result{stopped}; sacct -j {cluster_id} may say why."


def _queue(default: Mapping[str, str] | None = None) -> Mapping[str, str]:
    """Number -> state of this user's jobs in the queue.

    Args:
        default: where the cluster does not answer.

    Raises:
        UserError: if it does not answer, and there is no default.
    """
    asked = ["squeue", "--me", "--noheader", "--array", "--format=%i %T"]
    done = subprocess.run(asked, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        if default is not None:
            return default
        raise UserError(f"squeue fails: {done.stderr.strip() or done.returncode}. Is this cluster up?")
    pairs = (line.split() for line in done.stdout.splitlines())
    return {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
