"""Stopping is a normal end: a checkpoint of the step, one sentence, an exit code; the same command goes on."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from partcraft_lit.callbacks.checkpoint import damage
from partcraft_lit.commands.train import train as stages
from partcraft_lit.commands.train.fit import fit
from partcraft_lit.core import stopping
from partcraft_lit.module import PersonalizationModule

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGUSR1": 138}
#: Accumulated batches, so that a stop may fall inside of a step; a log line every two steps.
LONG = ("trainer.max_steps=6", "trainer.accumulate_grad_batches=2", "trainer.log_every_n_steps=2")


def send(step, name="SIGTERM"):
    return "+callbacks.send._target_=send.Send", f"+callbacks.send.step={step}", f"+callbacks.send.name={name}"


def state(folder, step):
    content = torch.load(folder / "checkpoints" / f"step={step:06d}.ckpt", weights_only=True)
    return {name: value.numpy().tobytes() for name, value in content["state_dict"].items()}


def lines(folder):
    rows = [json.loads(text) for text in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(("time", "perf/"))} for row in rows]


def sentence(out):
    (said,) = [line for line in out.splitlines() if line.startswith("partcraft: ")]
    return said


@pytest.fixture(scope="module")
def whole(new_workshop, plain):
    """A run that nobody stopped."""
    return new_workshop().train(*plain, *LONG)


@pytest.mark.parametrize("name", CODES)
def test_a_signal_ends_with_the_step_that_was_reached(new_workshop, plain, whole, name):
    workshop = new_workshop()
    ended = workshop("train", *plain, *LONG, *send(3, name))
    (folder,) = workshop.runs
    checkpoint = folder / "checkpoints" / "step=000003.ckpt"
    assert ended.code == CODES[name] and "Traceback" not in ended.out, ended.out
    told = f"partcraft: stopped by {name} at step 3 of 6; the same command continues from {checkpoint}."
    assert sentence(ended.out) == told
    assert damage(checkpoint) is None and checkpoint.with_name("step=000003.ckpt.json").is_file()
    assert not (folder / "finished.json").exists() and [row["step"] for row in lines(folder)] == [1]
    ended = workshop("train", *plain, *LONG)
    assert ended.code == 0 and f"Continuing from {checkpoint}" in ended.out, ended.out
    assert workshop.runs == [folder] and (folder / "finished.json").exists()
    assert state(folder, 6) == state(whole, 6) and lines(folder) == lines(whole)


def test_a_signal_at_the_last_step_leaves_the_scores_to_the_next_start(new_workshop, plain, whole):
    workshop = new_workshop()
    ended = workshop("train", *plain, *LONG, *send(6))
    (folder,) = workshop.runs
    assert ended.code == 143 and "at step 6 of 6" in sentence(ended.out), ended.out
    assert workshop("train", *plain, *LONG).code == 0 and (folder / "report.html").is_file()
    assert state(folder, 6) == state(whole, 6) and lines(folder) == lines(whole)


def test_a_time_limit_is_a_normal_end_of_an_unfinished_run(new_workshop, plain, whole, monkeypatch):
    workshop = new_workshop()
    ended = workshop("train", *plain, *LONG, "trainer.max_time=00:00:00:00")
    (folder,) = workshop.runs
    assert ended.code == 0 and not (folder / "finished.json").exists()
    assert "stopped by trainer.max_time at step 0 of 6; " in sentence(ended.out)
    # Of each start, not of all together: a depleted limit would end every later one.
    monkeypatch.setenv(stopping.SCHEDULED_VARIABLE, "1")  # whoever schedules it has to tell it from one that is done
    assert workshop("train", *plain, *LONG, "trainer.max_time=00:00:00:00").code == stopping.TIME_LIMIT_CODE
    monkeypatch.delenv(stopping.SCHEDULED_VARIABLE)
    ended = workshop("train", *plain, *LONG, "trainer.max_time={minutes:20}")
    assert ended.code == 0 and (folder / "finished.json").exists() and "stopped" not in ended.out, ended.out
    assert state(folder, 6) == state(whole, 6)
    ended = workshop("train", *plain, *LONG, "trainer.max_time=soon", "seed=9")
    assert ended.code == 2 and "not a valid duration" in ended.out and "Traceback" not in ended.out, ended.out


def with_scontrol(folder, monkeypatch, script):
    """A SLURM job with a stand-in for its command; returns the file with the arguments that it got."""
    command = folder / "scontrol"
    command.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{script}\n')
    command.chmod(command.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    return folder / "asked"


def test_usr1_under_slurm_puts_the_job_back_into_the_queue(new_workshop, plain, tmp_path, monkeypatch):
    asked = with_scontrol(tmp_path, monkeypatch, "exit 0")
    ended = new_workshop()("train", *plain, *send(2, "SIGUSR1"))
    assert ended.code == 138 and "at step 2 of 4; SLURM starts job 77 again; the same" in sentence(ended.out)
    assert asked.read_text() == "requeue 77\n"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "70")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    with_scontrol(tmp_path, monkeypatch, "echo disabled >&2; exit 1")
    ended = new_workshop()("train", *plain, *send(2, "SIGUSR1"))
    assert ended.code == 138 and "; SLURM does not start job 70_3 again (disabled); the same" in sentence(ended.out)
    assert asked.read_text().endswith("requeue 70_3\n")
    asked.unlink()
    assert new_workshop()("train", *plain, *send(2)).code == 143 and not asked.exists()


@pytest.mark.parametrize("place", ["discover", "score", "report"])
def test_a_signal_outside_of_training_ends_at_once(new_workshop, plain, monkeypatch, place):
    workshop = new_workshop()

    def stop(run):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)  # the signal ends it before

    changed = [stop if stage.__name__ == place else stage for stage in stages.STAGES]
    monkeypatch.setattr(stages, "STAGES", tuple(changed))
    ended = workshop("train", *plain)
    (folder,) = workshop.runs
    assert ended.code == 143 and "Traceback" not in ended.out, ended.out
    step = "no checkpoint was written yet" if place == "discover" else "step=000004.ckpt"
    assert "stopped by SIGTERM; " in sentence(ended.out) and step in sentence(ended.out)
    monkeypatch.undo()
    assert workshop("train", *plain).code == 0 and workshop.runs == [folder]


@pytest.mark.parametrize("verb", ["generate", "evaluate", "export"])
def test_other_verbs_end_alike(tiny_run, new_workshop, monkeypatch, verb):
    def stop(*_args, **_more):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    monkeypatch.setattr(PersonalizationModule, "generate", stop)
    workshop = new_workshop()
    run = workshop.copy(tiny_run)
    given = {"generate": ["prompt=a photo of a <1:1> bird"], "evaluate": ["eval.reconstructions=1"], "export": []}[verb]
    ended = workshop(verb, f"run={run}", "sample.steps=2", *given)
    assert ended.code == 130 and "Traceback" not in ended.out, ended.out
    assert sentence(ended.out).startswith("partcraft: stopped by SIGINT; what was made so far is in ")


def started(workshop, *overrides, launcher=("-m", "partcraft_lit")):
    """A command as a process with a group of its own, its output in ``out.txt``, and once it waits for the pause."""
    command = workshop.command("train", *overrides)
    outside = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")}
    with (workshop.root / "out.txt").open("w", encoding="utf-8") as out:
        return subprocess.Popen(
            [sys.executable, *launcher, *command],
            env={**outside, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def wait_for(process, workshop, pattern):
    until = time.monotonic() + 300
    while not list(workshop.root.glob(pattern)):
        assert process.poll() is None and time.monotonic() < until, (workshop.root / "out.txt").read_text()
        time.sleep(0.05)


def test_a_whole_group_is_told_and_its_loader_workers_say_nothing(new_workshop, plain):
    workshop = new_workshop()
    process = started(workshop, *plain, "trainer.max_steps=100000", "data.num_workers=2")
    try:
        wait_for(process, workshop, "logs/train/runs/*/checkpoints/step=000002.ckpt")
        for _ in range(2):
            os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(60) == 143
    finally:
        process.kill()
    said = (workshop.root / "out.txt").read_text()
    assert "Traceback" not in said and "of 100000; the same command continues from" in sentence(said), said


@pytest.mark.slow
@pytest.mark.parametrize("torchrun", [False, True])
def test_all_processes_stop_at_the_same_step_whichever_is_told(new_workshop, plain, torchrun):
    workshop = new_workshop()
    two = ("trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_steps=100000")
    launcher = ("-m", "partcraft_lit")
    if torchrun:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "partcraft_lit")
        two = (*two, f"hydra.run.dir={workshop.root / 'logs' / 'train' / 'runs' / 'run'}")
    process = started(workshop, *plain, *two, launcher=launcher)
    try:
        wait_for(process, workshop, "logs/train/runs/*/checkpoints/step=000002.ckpt")
        if torchrun:  # the second process alone
            os.kill(child(process.pid), signal.SIGTERM)
        else:
            os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(90) == (1 if torchrun else 143)  # torchrun has but one code for all that is not 0
    finally:
        process.kill()
    said = (workshop.root / "out.txt").read_text()
    (folder,) = workshop.runs
    step = int(sentence(said).partition(" at step ")[2].split(" ")[0])
    assert "stopped by SIGTERM" in sentence(said) and damage(folder / "checkpoints" / f"step={step:06d}.ckpt") is None
    assert torchrun or "Traceback" not in said, said


def child(parent):
    """The last process that a process has started."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
    return int(found[-1])


def test_the_loop_of_lightning_has_no_handlers_of_its_own(new_workshop, plain, monkeypatch):
    """They would save in the middle of a step; a version that installs them otherwise is noticed here."""
    handlers = []

    class Watch(Callback):
        def on_train_batch_end(self, *_):
            handlers.append([signal.getsignal(number) for number in stopping.SIGNALS])

    def watched(run):
        run.training.callbacks.append(Watch())
        fit(run)

    monkeypatch.setattr(stages, "STAGES", tuple(watched if stage is fit else stage for stage in stages.STAGES))
    assert new_workshop()("train", *plain, "trainer.max_steps=1").code == 0
    assert handlers and all(isinstance(handler, stopping._Catcher) for handler in handlers[0])


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_as_an_undisturbed_one():
    drill = Path(__file__).parents[2] / "tools" / "kill_runs.py"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, drill, "1"], env=environment, capture_output=True, encoding="utf-8", timeout=500
    )
    assert done.returncode == 0 and "1 of 1 equal the undisturbed run" in done.stdout, done.stdout + done.stderr
