"""Settings of the two schedulers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

from partcraft_lit.core.settings import Count, Positive


@dataclass(frozen=True)
class PoolSettings:
    """Processes on this machine.

    Attributes:
        jobs: at once; the cores are divided among them. None for one per GPU where there are several, else one.
        gpus: CUDA devices that are dealt out to them, numbered from 0; None for all.
    """

    jobs: Positive | None = None
    gpus: tuple[int, ...] | None = None


@dataclass(frozen=True)
class SlurmSettings:
    """Jobs of SLURM; None leaves a parameter to the cluster.

    Attributes:
        partition, account, qos, constraint: as sbatch has them.
        minutes: time limit of a job; at its end, and when it is preempted, a job writes a checkpoint and is queued
            again, with the same folder.
        warning_s: how long before its limit a job is told.
        requeues: how often a job may reach its time limit.
        gpus: of each job.
        cpus: of each job.
        mem_gb: memory of each job in GB.
        jobs: how many run at once; None for as many as the cluster gives.
        setup: shell commands before a job, such as "module load cuda".
        sbatch: further parameters of sbatch, {exclude: node7}.
        wait: whether the command waits for the jobs and then writes the results; False returns at once, and the same
            command again goes on from what is there.
        poll_s: how often the queue is looked at.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    minutes: Positive = 60
    warning_s: Positive = 120
    requeues: Count = 10
    gpus: Count | None = None
    cpus: Positive | None = None
    mem_gb: Annotated[float, Field(gt=0)] | None = None
    jobs: Positive | None = None
    setup: tuple[str, ...] = ()
    sbatch: dict[str, str | int | float | bool] = field(default_factory=dict)
    wait: bool = True
    poll_s: Annotated[float, Field(gt=0)] = 5.0
