"""A run that was killed goes on as if nothing had been: equal bytes, whatever the number of loader workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import toy_loss
import yaml

from partcraft_lit.callbacks.metrics_log import read_metrics
from partcraft_lit.core import rundir

HALF = 3
#: What makes it hard: accumulated batches, a warm-up that spans the kill, clipping, weight decay.
LONG = (
    f"trainer.max_steps={2 * HALF}",
    "trainer.accumulate_grad_batches=2",
    "optim.warmup_steps=5",
    "optim.lora_lr=0.01",
    "optim.mapper_lr=0.01",
    f"callbacks.checkpoints.every_n_steps={HALF}",
)


@dataclass
class Killed:
    """What a killed run left: ``logs`` below ``root``, and whether its folder was free at once."""

    root: Path
    free: bool


def adapter(folder: Path) -> dict[str, bytes]:
    """Name -> bytes of everything that trains and of the optimizer's moments, after the last step."""
    content = torch.load(folder / "checkpoints" / f"step={2 * HALF:06d}.ckpt", weights_only=True)
    tensors = dict(content["state_dict"])
    for number, state in content["optimizer_states"][0]["state"].items():
        tensors |= {f"optimizer {number} {name}": value for name, value in state.items()}
    return {name: value.numpy().tobytes() for name, value in tensors.items()}


@pytest.fixture(scope="module")
def whole(new_workshop, plain):
    """A run that nobody disturbed."""
    return new_workshop().train(*plain, *LONG)


@pytest.fixture(scope="module")
def killed(new_workshop, plain):
    """The same run, killed by signal 9 between its checkpoint and its end."""
    workshop = new_workshop()
    pause = ("+callbacks.pause._target_=pause.Pause", f"+callbacks.pause.step={HALF + 1}")
    command = workshop.command("train", *plain, *LONG, *pause, "data.num_workers=2")
    here = str(Path(__file__).parent)
    with (workshop.root / "out.txt").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "partcraft_lit", *command],
            env={**os.environ, "PYTHONPATH": here},
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + 300
        while not paused(workshop):
            assert process.poll() is None and time.monotonic() < deadline, (workshop.root / "out.txt").read_text()
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        free = not rundir.in_use(workshop.runs[0])
    return Killed(workshop.root, free)


def paused(workshop) -> bool:
    return any(
        (run / "checkpoints" / f"step={HALF:06d}.ckpt").exists() and len(losses(run)) >= HALF for run in workshop.runs
    )


def losses(run: Path) -> list[tuple[int, float]]:
    return read_metrics(run / "metrics.jsonl").get("train/loss", [])


def lines(run: Path) -> list[list[str]]:
    """Step and keys of every line of ``metrics.jsonl``."""
    rows = [json.loads(text) for text in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [[str(row["step"]), *row] for row in rows]


@pytest.mark.parametrize("workers", [0, 1])
def test_killed_and_resumed_is_the_same_to_the_bit(whole, killed, new_workshop, plain, workers):
    workshop = new_workshop()
    shutil.copytree(killed.root / "logs", workshop.root / "logs")
    (folder,) = workshop.runs
    ended = workshop("train", *plain, *LONG, f"data.num_workers={workers}")
    assert ended.code == 0, ended.out
    assert f"Continuing the unfinished run {folder}" in ended.out
    assert f"Continuing from {folder / 'checkpoints' / f'step={HALF:06d}.ckpt'}" in ended.out
    assert workshop.runs == [folder] and (folder / "finished.json").exists()
    expected, found = adapter(whole), adapter(folder)
    assert expected.keys() == found.keys()
    assert not [name for name, value in expected.items() if found[name] != value]
    assert losses(folder) == losses(whole)
    assert lines(folder) == lines(whole)


def test_the_folder_is_free_as_soon_as_the_process_is_dead(killed):
    """Loader workers outlive a killed process by seconds; the lock must not live with them."""
    assert killed.free


def newest(folder: Path) -> Path:
    return folder / "checkpoints" / "step=000004.ckpt"


def test_a_damaged_checkpoint_is_passed_over_and_said(tiny_run, new_workshop, plain):
    workshop = new_workshop()
    folder = workshop.copy(tiny_run, finished=False)
    content = bytearray(newest(folder).read_bytes())
    content[len(content) // 2] ^= 1
    newest(folder).write_bytes(content)
    (folder / "checkpoints" / "last.ckpt").unlink()  # a copy of it, which would stand in
    ended = workshop("train", *plain)
    assert ended.code == 0, ended.out
    assert "step=000004.ckpt is passed over: its bytes are not those that were written" in ended.out
    assert f"Continuing from {folder / 'checkpoints' / 'step=000002.ckpt'}" in ended.out
    assert state(folder) == state(tiny_run)


def test_with_no_checkpoint_left_it_says_so_and_starts_again(tiny_run, new_workshop, plain):
    workshop = new_workshop()
    folder = workshop.copy(tiny_run, finished=False)
    for path in (folder / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"")
    ended = workshop("train", *plain)
    assert ended.code == 0, ended.out
    assert "can be read" in ended.out and "Continuing from" not in ended.out
    assert state(folder) == state(tiny_run)
    assert [step for step, _ in losses(folder)] == [0, 1, 2, 3]


def test_a_run_that_was_trained_but_not_scored_is_scored(tiny_run, new_workshop):
    """Killed while it scored or wrote its report: no step is left, everything after the steps is."""
    workshop = new_workshop()
    folder = workshop.copy(tiny_run, finished=False)
    before = (folder / "scores.json").read_bytes()
    for name in ("scores.json", "report.html"):
        (folder / name).unlink()
    ended = workshop("train")
    assert ended.code == 0, ended.out
    assert (folder / "scores.json").read_bytes() == before
    assert (folder / "report.html").exists() and state(folder) == state(tiny_run)
    assert losses(folder) == losses(tiny_run)
    assert lines(folder) == lines(tiny_run)


def test_a_finished_run_is_left_alone(tiny_run, new_workshop, plain):
    workshop = new_workshop()
    workshop.copy(tiny_run)
    assert workshop("train", *plain, "trainer.max_steps=1").code == 0
    assert len(workshop.runs) == 2


def state(folder: Path) -> dict[str, bytes]:
    return {
        name: value.numpy().tobytes()
        for name, value in torch.load(newest(folder), weights_only=True)["state_dict"].items()
    }


BROKEN = (
    "trainer.max_steps=8",
    "callbacks.checkpoints.every_n_steps=4",
    "+loss_terms.broken={_target_:toy_loss.broken,after:8,weight:1}",
)


def test_a_loss_that_is_not_finite_goes_back_once_and_then_ends(new_workshop, plain, monkeypatch):
    monkeypatch.setattr(toy_loss, "broken_for", 3)
    workshop = new_workshop()
    with pytest.warns(UserWarning, match=r"skipped: step 4, species .*\.(png|jpg) at timestep \d+, .*32-true"):
        ended = workshop("train", *plain, *BROKEN)
    assert ended.code == 0, ended.out
    (folder,) = workshop.runs
    assert "3 steps in a row had a loss or gradients that are not finite" in ended.out
    assert "step=000004.ckpt, with half the learning rates" in ended.out
    content = torch.load(folder / "checkpoints" / "step=000008.ckpt", weights_only=True)
    assert content["rate_scale"] == 0.5
    rate = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())["optim"]["lora_lr"]
    assert content["optimizer_states"][0]["param_groups"][0]["lr"] == rate / 2
    assert [step for step, _ in losses(folder)] == list(range(8))

    monkeypatch.setattr(toy_loss, "broken_for", 6)
    with pytest.warns(UserWarning, match="the step is skipped"):
        ended = workshop("train", *plain, *BROKEN, "seed=3")
    assert ended.code == 2 and "Training stops here. Lower the learning rates" in ended.out, ended.out
    assert "Traceback" not in ended.out and not (workshop.runs[-1] / "finished.json").exists()


@pytest.mark.parametrize("content", [b"", b"root:x:0:0", b"PK\x05\x06" + bytes(18)])
def test_a_named_file_that_is_no_checkpoint_is_told_before_any_work(new_workshop, tmp_path, content):
    path = tmp_path / "named.ckpt"
    path.write_bytes(content)
    workshop = new_workshop()
    ended = workshop("train", f"ckpt_path={path}")
    assert ended.code == 2 and f"ckpt_path={path} cannot be continued: it" in ended.out, ended.out
    assert "Traceback" not in ended.out and not workshop.runs
