"""SLURM's launcher with stand-ins for SLURM's commands; submitit and the processes of the jobs are real."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from partcraft_lit.core.errors import UserError
from partcraft_lit.scheduling import slurm
from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.settings import SlurmSettings
from partcraft_lit.scheduling.slurm import run_on_slurm
from partcraft_lit.scheduling.tasks import Outcome, Step, Task

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stand-ins read /proc")
FAKE = Path(__file__).with_name("fake_slurm.py")
#: Fails where "fail" names it; waits where "wait" is there; counts its starts; a SIGTERM is a checkpoint and an end.
JOB = """
import json, os, pathlib, signal, sys, time
root, name = pathlib.Path(sys.argv[1]), sys.argv[2]
def stop(number, frame):
    (root / name / "checkpoint").touch(); sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with (root / f"{name}.starts").open("a") as file: file.write("x")
(root / f"{name}.environment").write_text(json.dumps(dict(os.environ)))
if (root / "fail").exists() and (root / "fail").read_text() == name: print("partcraft: it broke."); sys.exit(2)
if (root / "limit").exists(): print("partcraft: stopped by trainer.max_time at step 3 of 6."); sys.exit(75)
while (root / "wait").exists() and not (root / name / "checkpoint").exists(): time.sleep(0.05)
(root / name / "done").touch()
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A folder on a cluster of its own."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("sbatch", "srun", "squeue", "scontrol", "scancel"):
        (commands / name).write_text(f'#!/bin/sh\nexec {sys.executable} -S {FAKE} {name} "$@"\n', encoding="utf-8")
        (commands / name).chmod(0o755)
    state = tmp_path / "state"
    state.mkdir()
    monkeypatch.setenv("FAKE_SLURM", str(state))
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    return sweep


def tasks(root: Path, *names: str) -> list[Task]:
    made = []
    for name in names:
        command = (sys.executable, "-S", "-c", JOB, str(root), name)
        made.append(Task(name, root / name, (Step(command, (root / name / "done").is_file),), key=name))
    return made


def run(root, names="ab", log=lambda text: None, **settings):
    return run_on_slurm(tasks(root, *names), SlurmSettings(poll_s=0.1, **settings), log, Ledger(root))


def submitted(root: Path) -> list[dict[str, str]]:
    state = root.parent / "state"
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(state.glob("submitted-*"))]


def wait_for(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)


def test_an_array_of_jobs_and_one_that_fails(cluster):
    (cluster / "fail").write_text("b", encoding="utf-8")
    said = []
    settings = {"partition": "gpu", "minutes": 30, "cpus": 2, "gpus": 1, "mem_gb": 1.5, "jobs": 2}
    outcome = run(cluster, "abc", said.append, **settings, sbatch={"exclude": "node7"}, setup=("export SET_UP=1",))
    assert outcome.failed == {"b": "partcraft: it broke."} and not outcome.pending
    assert (cluster / "a" / "done").exists() and (cluster / "c" / "done").exists()
    (options,) = submitted(cluster)
    assert options["array"] == "0-2%2" and options["partition"] == "gpu" and options["exclude"] == "node7"
    assert (options["time"], options["cpus-per-task"], options["gpus-per-node"]) == ("30", "2", "1")
    assert options["mem"] == "1536M" and options["signal"] == "USR2@120" and "requeue" in options
    environment = json.loads((cluster / "a.environment").read_text(encoding="utf-8"))
    assert environment["OMP_NUM_THREADS"] == "2" and environment["SET_UP"] == "1"
    assert not [name for name in environment if name.startswith(("SLURM_", "SUBMITIT_"))]
    wait_for(lambda: Ledger(cluster).latest()["a"].status == "done")  # which the job writes after its last file
    latest = Ledger(cluster).latest()
    assert latest["a"].cluster_id == "100_0" and latest["b"].code == 2
    (cluster / "fail").unlink()
    assert run(cluster, "abc", said.append).failed == {}
    assert {name: (cluster / f"{name}.starts").read_text(encoding="utf-8") for name in "abc"} == {
        "a": "x",
        "b": "xx",
        "c": "x",
    }


def test_what_is_in_the_queue_is_not_submitted_again(cluster):
    (cluster / "wait").touch()
    said = []
    outcome = run(cluster, log=said.append, wait=False)
    assert outcome.pending == {"a": "100_0", "b": "100_1"} and not outcome.failed
    assert "squeue -j 100 shows them, scancel 100 ends them" in said[-1]
    assert run(cluster, log=said.append, wait=False).pending == outcome.pending
    assert "0 of 2 jobs are done, 2 in the queue." in said
    assert len(submitted(cluster)) == 1
    (cluster / "wait").unlink()
    assert run(cluster, log=said.append).failed == {}
    assert len(submitted(cluster)) == 1 and (cluster / "a.starts").read_text(encoding="utf-8") == "x"


def test_a_preempted_job_is_queued_again_with_its_folder(cluster):
    (cluster / "wait").touch()
    (name,) = run(cluster, "a", wait=False).pending.values()
    wait_for((cluster / "a.starts").exists)
    time.sleep(0.2)
    subprocess.run(["scancel", "--signal=USR2", name], check=True)
    assert run(cluster, "a").failed == {}
    assert (cluster / "a" / "checkpoint").exists() and (cluster / "a" / "done").exists()
    assert (cluster / "a.starts").read_text(encoding="utf-8") == "xx" and len(submitted(cluster)) == 1
    wait_for(lambda: Ledger(cluster).latest()["a"].status == "done")  # which the job writes after its last file
    statuses = [entry.status for entry in Ledger(cluster).entries()]
    assert statuses == ["submitted", "running", "stopped", "running", "done"]


def test_a_job_that_reached_its_own_time_limit_ends_and_is_submitted_again(cluster):
    (cluster / "limit").touch()
    outcome = run(cluster, "a")
    assert outcome.stopped == {"a": "partcraft: stopped by trainer.max_time at step 3 of 6."} and not outcome.failed
    (cluster / "limit").unlink()
    assert run(cluster, "a") == Outcome()
    assert (cluster / "a" / "done").exists() and len(submitted(cluster)) == 2


def test_a_job_that_was_cancelled_has_failed(cluster):
    (cluster / "wait").touch()
    (name,) = run(cluster, "a", wait=False).pending.values()
    wait_for((cluster / "a.starts").exists)
    subprocess.run(["scancel", name], check=True)
    (cluster / "wait").touch()
    # the same command would submit it again; one that waits all the time sees it go
    known = {"a": name}
    outcome = slurm._wait(
        {task.key: task for task in tasks(cluster, "a")},
        known,
        SlurmSettings(poll_s=0.05),
        lambda text: None,
        Ledger(cluster),
        1,
    )
    assert f"Job {name} left the queue without a result" in outcome.failed["a"]


def test_what_is_missing_or_refused_is_told(cluster, monkeypatch):
    with pytest.raises(UserError, match=r"SLURM does not take the jobs:.*invalid partition"):
        run(cluster, partition="nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'partcraft-lit\[slurm\]'"):
        run(cluster)
    monkeypatch.undo()
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="There is no sbatch here"):
        run(cluster)
