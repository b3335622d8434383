"""One entrance to both schedulers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.pool import run_in_pool
from partcraft_lit.scheduling.running import note_done
from partcraft_lit.scheduling.settings import PoolSettings, SlurmSettings
from partcraft_lit.scheduling.slurm import run_on_slurm
from partcraft_lit.scheduling.tasks import Outcome, Task


def run_tasks(
    tasks: Sequence[Task],
    where: PoolSettings | SlurmSettings,
    log: Callable[[str], None],
    ledger: Ledger,
    gpus_each: int = 1,
) -> Outcome:
    """Runs what is not done yet, where the settings say; see ``run_in_pool`` and ``run_on_slurm``."""
    note_done(ledger, tasks)
    if isinstance(where, SlurmSettings):
        return run_on_slurm(tasks, where, log, ledger, gpus_each)
    return run_in_pool(tasks, where, log, ledger, gpus_each)
