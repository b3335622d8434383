"""Training by the script of the docs, on a real SLURM: undisturbed, preempted, and with too little time."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
import torch
from jobs import ROOT, STEPS, Slurm

pytestmark = pytest.mark.slurm

SCRIPT = ROOT / "docs" / "slurm" / "train.sbatch"
#: Two processes, as two GPUs would have.
TWO = ("--ntasks-per-node=2",)


def steps_of(run: Path) -> list[int]:
    """Steps whose loss is in the metrics, in order."""
    path = run / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row["step"] for row in rows if "train/loss" in row]


def wait_for_step(slurm: Slurm, job: str, run: Path, step: int) -> None:
    until = time.monotonic() + 180
    while step not in steps_of(run):
        assert time.monotonic() < until, slurm.output(job)
        time.sleep(0.1)


def trained(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == STEPS
    return checkpoint["state_dict"]


def assert_same_training(run: Path, other: Path) -> None:
    """The same bytes, and every step once."""
    first, second = trained(run), trained(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert steps_of(run) == steps_of(other) == list(range(STEPS))


@pytest.fixture(scope="module")
def undisturbed(slurm: Slurm) -> Path:
    """A run of two processes that nobody stops."""
    job = slurm.submit(SCRIPT, *slurm.data, *slurm.training, options=TWO)
    slurm.wait(job)
    said = slurm.output(job)
    assert said.count("Report: ") == 1 and "trainable parameters" in said, said
    return slurm.root / "logs" / "slurm" / job


def test_two_processes_train_in_one_folder(undisturbed: Path) -> None:
    assert (undisturbed / "finished.json").exists() and (undisturbed / "report.html").exists()
    assert steps_of(undisturbed) == list(range(STEPS))
    assert "earlier" not in json.loads((undisturbed / "environment.json").read_text(encoding="utf-8"))


def test_a_preempted_job_goes_on_and_trains_the_same(slurm: Slurm, undisturbed: Path) -> None:
    job = slurm.submit(SCRIPT, *slurm.data, *slurm.training, options=TWO, PAUSE="0.4")
    run = slurm.root / "logs" / "slurm" / job
    wait_for_step(slurm, job, run, 5)
    urgent = slurm("sbatch", "--parsable", "--partition=urgent", "--ntasks=4", "--wrap=sleep 1").strip()
    slurm.wait(urgent)
    slurm.wait(job)
    said = slurm.output(job)
    reached = re.search(rf"stopped by SIGUSR1 at step (\d+) of {STEPS}", said)
    assert reached and 5 <= int(reached[1]) < STEPS, said
    assert f"SLURM starts job {job} again" in said and "Continuing from" in said
    assert_same_training(run, undisturbed)


def test_a_job_at_its_time_limit_goes_on_and_trains_the_same(slurm: Slurm, undisturbed: Path) -> None:
    # SLURM looks at the clock every 30 s, and signals at the last look before: here 60 to 90 s after the start.
    limited = (*TWO, "--time=2", "--signal=USR1@30")
    job = slurm.submit(SCRIPT, *slurm.data, *slurm.training, options=limited, PAUSE="2.4")
    run, until = slurm.root / "logs" / "slurm" / job, time.monotonic() + 400
    while not (run / "finished.json").exists() and time.monotonic() < until:
        time.sleep(0.5)  # not for the job's end: a signal that comes when all is done gives it another exit code
    said = slurm.output(job)
    assert f"SLURM starts job {job} again" in said and "Continuing from" in said, said
    assert_same_training(run, undisturbed)
