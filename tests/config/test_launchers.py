"""Sweeps through the command line, with a stand-in for the command of each job."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from partcraft_lit import cli
from partcraft_lit.config import launchers
from partcraft_lit.scheduling.ledger import Ledger

#: What a job of the stand-in does with its overrides, {key: value}, and its folder: the same files as a training run.
JOB = """
import json, os, pathlib, sys, time
given = dict(text.partition("=")[::2] for text in sys.argv[1:] if "=" in text)
folder = pathlib.Path(given["hydra.run.dir"].strip("'"))
with open("starts", "a") as file: file.write(given["seed"] + "\\n")
pathlib.Path("environment").write_text(json.dumps(dict(os.environ)))
if pathlib.Path("fail").exists() and pathlib.Path("fail").read_text() == given["seed"]:
    print("partcraft: it broke."); sys.exit(2)
if pathlib.Path("limit").exists() and given["seed"] == "2":
    print("partcraft: stopped by trainer.max_time at step 3 of 6."); sys.exit(75)
while pathlib.Path("wait").exists(): time.sleep(0.02)
score = 1 / float(given["seed"])
(folder / "scores.json").write_text(json.dumps({"eval/emr@reconstruction": score, "eval/cosim@reconstruction": 0.5}))
objective = given.get("objective")
result = {"key": os.environ["PARTCRAFT_LIT_JOB"], "objective": objective, "value": score if objective else None}
(folder / "job_result.json").write_text(json.dumps(result))
"""
SWEEP = ("pretrain", "-m", "seed=1,2,3")  # the verb whose configuration is composed fastest
TRAIN = ("train", "-m", "seed=1,2", "logger=none", "trainer=cpu", "dataset.images_per_species=1")


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """Runs a sweep in this process; every job is the stand-in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launchers, "python_command", stand_in)

    def run(*more, given=SWEEP):
        monkeypatch.setattr(sys, "argv", ["partcraft", *given, *more])
        with pytest.raises(SystemExit) as ended:
            cli.main([*given, *more])
        out = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out.out, err=out.err)

    return run


def stand_in(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", JOB, *arguments)


def starts() -> list[str]:
    return Path("starts").read_text(encoding="utf-8").split()


def folders() -> list[Path]:
    return sorted(Path("logs/pretrain/multiruns").iterdir())[1:]  # the first is the lock


def test_the_same_command_again_runs_nothing_twice(sweep):
    ended = sweep()
    assert ended.code == 0, ended.err
    assert starts() == ["1", "2", "3"]
    (folder,) = folders()
    with (folder / "sweep.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["seed"] for row in rows] == ["1", "2", "3"]  # the best first
    assert rows[1]["eval/emr@reconstruction"] == "0.5" and rows[0]["status"] == "done"
    assert "| 1 | **1.000** |" in (folder / "sweep.md").read_text(encoding="utf-8")
    assert (folder / "sweep.png").is_file() and (folder / "sweep.svg").is_file()
    ended = sweep()
    assert ended.code == 0 and "Continuing the sweep" in ended.out and "All 3 jobs are done." in ended.out
    assert starts() == ["1", "2", "3"] and folders() == [folder]
    assert sweep("debug=true", "hydra.launcher.jobs=2").code == 0  # neither decides a result
    assert len(starts()) == 3
    assert sweep("ckpt_path=null").code == 0
    assert len(starts()) == 6 and len(folders()) == 2


def test_what_is_changed_runs_again_in_a_folder_of_its_own(sweep):
    assert sweep("hydra.sweep.dir=mine").code == 0
    before = {path.name for path in Path("mine").iterdir() if path.is_dir()}
    assert sweep("hydra.sweep.dir=mine", given=("pretrain", "-m", "seed=5,2")).code == 0
    assert starts() == ["1", "2", "3", "5"]
    added = {path.name for path in Path("mine").iterdir() if path.is_dir()} - before
    assert len(added) == 1 and next(iter(added)).startswith("0-")
    assert sweep("hydra.sweep.dir=mine", "features.steps=9").code == 0
    assert len(starts()) == 7


def test_a_subdir_that_all_jobs_share_keeps_them_apart(sweep):
    assert sweep("hydra.sweep.dir=mine", "hydra.sweep.subdir=one").code == 0
    assert len({entry.folder for entry in Ledger(Path("mine")).latest().values()}) == 3


def test_a_job_that_fails_stops_nothing_and_is_tried_again(sweep):
    Path("fail").write_text("1", encoding="utf-8")
    ended = sweep()
    assert ended.code == 2
    assert ended.out.rstrip().endswith("1 of 3 jobs failed. The same command tries them again.")
    assert "FAILED seed=1: partcraft: it broke." in ended.out
    (folder,) = folders()
    assert "**failed**" in (folder / "sweep.md").read_text(encoding="utf-8")
    Path("fail").unlink()
    assert sweep().code == 0
    assert starts() == ["1", "2", "3", "1"]


def test_a_job_that_reached_its_time_limit_goes_on_by_the_same_command(sweep):
    Path("limit").touch()
    ended = sweep()
    assert ended.code == 0, ended.err
    assert "STOPPED seed=2: stopped by trainer.max_time at step 3 of 6." in ended.out
    last = "1 of 3 jobs ended at trainer.max_time, with a checkpoint. The same command continues them."
    assert ended.out.rstrip().endswith(last) and "FAILED" not in ended.out
    assert "**stopped**" in (folders()[0] / "sweep.md").read_text(encoding="utf-8")
    Path("limit").unlink()
    ended = sweep()
    assert ended.code == 0 and starts() == ["1", "2", "3", "2"] and "STOPPED" not in ended.out


def test_a_job_has_an_environment_of_its_own(sweep, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    ended = sweep("features.steps=9")
    assert ended.code == 0 and "3 to do, 2 at once." in ended.out
    found = json.loads(Path("environment").read_text(encoding="utf-8"))
    (folder,) = folders()
    assert found["CUDA_VISIBLE_DEVICES"] in ("4", "5") and found["WANDB_RUN_GROUP"] == f"sweep {folder.name}"
    assert Path(found["PARTCRAFT_LIT_SWEEP"]) == folder.absolute() and "HYDRA_FULL_ERROR" not in found


def test_jobs_of_several_processes_are_no_mistake(sweep):
    """Each is a command of its own, so Lightning starts the right one again."""
    assert sweep("trainer.devices=2", "trainer.strategy=ddp", given=TRAIN).code == 0
    ended = sweep("trainer.num_nodes=2", given=TRAIN)
    assert ended.code == 2 and "works on one machine" in ended.err


def test_sweepers_get_what_hydra_promises_them(sweep):
    """The interface that Hydra's sweepers use: a value for each job, also for those that are done, and no exception."""
    returned = []
    launch = launchers.PoolLauncher.launch
    Path("fail").write_text("2", encoding="utf-8")
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                launchers.PoolLauncher, "launch", lambda *a, **k: returned.append(launch(*a, **k)) or returned[-1]
            )
            assert sweep("objective=eval/emr@reconstruction", given=TRAIN).code == 2
    for first, second in returned:
        assert first.return_value == 1.0 and first.cfg.seed == 1
        assert Path(first.working_dir, "job_result.json").is_file()
        assert second.status.name == "FAILED"
        with pytest.raises(Exception, match="it broke"):
            _ = second.return_value


@pytest.mark.parametrize(
    "more, message",
    [
        (("hydra.launcher.jobs=0",), "hydra.launcher.jobs=0"),
        (("hydra.launcher.gpus=[7]",), r"there is no device 7; torch sees 0 here"),
        (("hydra/launcher=slurm",), "There is no sbatch here"),
        (("hydra/launcher=slurm", "hydra.launcher.minutes=soon"), "hydra.launcher.minutes='soon'"),
        (("hydra/launcher=pol",), "Did you mean 'pool'"),
    ],
)
def test_mistakes_are_told_before_anything_starts(more, message, sweep, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    ended = sweep(*more)
    assert ended.code == 2 and message in ended.err, ended.err
    assert not Path("starts").exists()


KILLED = """
import sys
from partcraft_lit import cli
from partcraft_lit.config import launchers
launchers.python_command = lambda *given: (sys.executable, "-S", "-c", {job!r}, *given)
cli.main(sys.argv[1:])
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_sweep_that_was_ended_continues(number, sweep, tmp_path):
    Path("wait").touch()
    command = [sys.executable, "-c", KILLED.format(job=JOB), *SWEEP]
    given = {"cwd": tmp_path, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **given) as running:
        until = time.monotonic() + 60
        while not Path("starts").exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(running.pid, number)
        said = running.communicate(timeout=60)[1]
    assert running.returncode == (143 if number == signal.SIGTERM else -number)
    if number == signal.SIGTERM:
        assert "stopped by SIGTERM; the same command continues the sweep in logs" in said
        assert Ledger(folders()[0]).entries()[-1].status == "stopped"
    Path("wait").unlink()
    ended = sweep()
    assert ended.code == 0 and "Continuing the sweep" in ended.out, ended.err
    assert sorted(set(starts())) == ["1", "2", "3"] and len(starts()) <= 4
    assert len(folders()) == 1
    assert {entry.status for entry in Ledger(folders()[0]).latest().values()} == {"done"}
