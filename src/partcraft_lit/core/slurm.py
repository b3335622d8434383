"""What a job says to SLURM."""

from __future__ import annotations

import os
import subprocess

_TIMEOUT_S = 60.0


def job_id() -> str | None:
    """Of the SLURM job that this process belongs to, with the index of its array; None outside of SLURM."""
    array, index = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{index}" if array and index else os.environ.get("SLURM_JOB_ID") or None


def requeue() -> str | None:
    """Puts the job back into the queue, to start again; what came of it, or None outside of SLURM.

    SLURM refuses jobs that were submitted with ``--no-requeue``, and interactive ones.
    """
    job = job_id()
    if job is None:
        return None
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT_S
        )
        refusal = "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"
    except (OSError, subprocess.TimeoutExpired) as error:
        refusal = str(error)
    return f"SLURM starts job {job} again" if not refusal else f"SLURM does not start job {job} again ({refusal})"
