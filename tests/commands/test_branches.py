"""A named checkpoint begins a branch: a run of its own, which leaves its parent alone and continues as itself."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
import torch

#: Of the lines of the log that are compared.
KEYS = {"step", "train/loss_diffusion", "train/loss"}
SENT = ("+callbacks.send._target_=send.Send", "+callbacks.send.step=3")
LAST = "step=000004.ckpt"


def state(folder, name=LAST):
    content = torch.load(folder / "checkpoints" / name, weights_only=True)["state_dict"]
    return {key: value.numpy().tobytes() for key, value in content.items()}


def files(folder):
    """Path -> digest of everything in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rows(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: row[key] for key in KEYS} for row in lines if row.keys() >= KEYS]


@pytest.fixture
def family(tiny_run, new_workshop):
    """A workshop with an unfinished copy of the shared run, and its checkpoint at half of the steps."""
    workshop = new_workshop()
    parent = workshop.copy(tiny_run, finished=False)
    return workshop, parent, parent / "checkpoints" / "step=000002.ckpt"


def test_a_branch_without_a_change_is_what_its_parent_became(family, plain):
    workshop, parent, checkpoint = family
    before = files(parent)
    ended = workshop("train", *plain, f"ckpt_path={checkpoint}")
    assert ended.code == 0, ended.out
    branch = workshop.runs[-1]
    assert branch != parent and f"a branch of {checkpoint}" in ended.out
    assert f"Continuing from {checkpoint}" in ended.out
    assert files(parent) == before and state(branch) == state(parent)
    assert rows(branch) == [row for row in rows(parent) if row["step"] >= 2]
    told = json.loads((branch / "environment.json").read_text())["parent"]
    assert told["checkpoint"] == str(checkpoint) and told["step"] == 2 and told["run"] == str(parent)
    assert told["sha256"] == json.loads((checkpoint.parent / "step=000002.ckpt.json").read_text())["sha256"]
    assert json.loads((branch / "logger_config.json").read_text())["parent"] == told


def test_a_branch_with_other_settings_sees_the_same_noise_and_continues_as_itself(family, plain):
    workshop, parent, checkpoint = family
    change = (f"ckpt_path={checkpoint}", "loss.lambda_attn=0.5", "optim.lora_lr=0.002", "optim.weight_decay=0.5")
    assert workshop("train", *plain, *change, *SENT).code == 143
    branch = workshop.runs[-1]
    own = branch / "checkpoints" / "step=000003.ckpt"
    groups = torch.load(own, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert {group["name"]: group["lr"] for group in groups}["lora"] == 0.002 and groups[0]["weight_decay"] == 0.5
    # Equal weights, data and noise at its first step, so an equal loss but for lambda.
    assert rows(branch)[0]["train/loss_diffusion"] == rows(parent)[2]["train/loss_diffusion"]
    assert rows(branch)[0]["train/loss"] != rows(parent)[2]["train/loss"]
    shutil.move(checkpoint, checkpoint.with_name("elsewhere"))  # as a parent does that trains on
    ended = workshop("train", *plain, *change)
    assert ended.code == 0 and f"Continuing the unfinished branch {branch} of {checkpoint}" in ended.out, ended.out
    assert f"Continuing from {own}" in ended.out and workshop.runs == [parent, branch]
    assert [row["step"] for row in rows(branch)] == [2, 3] and state(branch) != state(parent)
    assert json.loads((branch / "environment.json").read_text())["parent"]["checkpoint"] == str(checkpoint)


def test_the_parent_is_continued_without_its_branch(family, plain):
    workshop, parent, checkpoint = family
    assert workshop("train", *plain, f"ckpt_path={checkpoint}", *SENT).code == 143
    ended = workshop("train", *plain)
    assert ended.code == 0 and f"Continuing the unfinished run {parent} " in ended.out, ended.out


def test_a_branch_does_not_begin_in_its_parents_folder(family, plain):
    workshop, parent, checkpoint = family
    before = files(parent / "checkpoints")
    ended = workshop("train", *plain, f"ckpt_path={checkpoint}", f"hydra.run.dir={parent}")
    assert ended.code == 2 and "begins a branch, which needs another folder" in ended.out, ended.out
    assert files(parent / "checkpoints") == before
    place = workshop.root / "logs" / "named"
    assert workshop("train", *plain, f"ckpt_path={checkpoint}", f"hydra.run.dir={place}").code == 0
    assert state(place) == state(parent)


def test_weights_alone_are_no_state_to_go_on_from(family, plain, tmp_path):
    workshop, _, checkpoint = family
    content = torch.load(checkpoint, weights_only=True)
    path = tmp_path / "best.ckpt"
    torch.save({key: content[key] for key in ("state_dict", "global_step")}, path)
    ended = workshop("train", *plain, f"ckpt_path={path}")
    assert ended.code == 2 and "holds the weights alone" in ended.out, ended.out
