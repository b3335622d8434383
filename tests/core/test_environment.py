from __future__ import annotations

import json
import os
import subprocess

import pytest

from partcraft_lit.core import environment


def test_it_names_versions_and_machine_and_no_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret-value")
    written = environment.write(tmp_path)
    text = (tmp_path / "environment.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(written))
    assert written["packages"]["torch"].startswith("2.") and written["cpu_count"] >= 1
    assert "secret-value" not in text


def test_a_continued_run_keeps_its_earlier_starts(tmp_path):
    environment.write(tmp_path)
    environment.write(tmp_path)
    third = environment.write(tmp_path)
    assert len(third["earlier"]) == 2 and "earlier" not in third["earlier"][0]


NAMES = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "SLURM_PROCID",
    "SLURM_NTASKS",
)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),  # Lightning's further processes
        ({"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}, (5, 8)),  # torchrun on the second of two machines
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "4"}, (3, 4)),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "1"}, (1, 2)),
        ({"RANK": "what", "LOCAL_RANK": "2"}, (2, 3)),
        ({"NODE_RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}, (0, 4)),
        ({"NODE_RANK": "1", "WORLD_SIZE": "4"}, (1, 4)),  # the first process that a person starts on machine 1
        ({"NODE_RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"NODE_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, (2, 4)),
        ({"GROUP_RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, (3, 4)),  # torchrun's name
        ({"RANK": "3", "GROUP_RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "4"}, (3, 4)),
        ({"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_NODEID": "1", "SLURM_LOCALID": "0"}, (2, 4)),
    ],
)
def test_position_among_the_processes_of_a_run(monkeypatch, variables, expected):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert environment.position() == expected
    assert environment.is_first_process() == (expected[0] == 0)


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ({"accelerator": "cpu", "devices": 2}, 2),
        ({"accelerator": "cpu", "devices": "auto"}, 1),
        ({"accelerator": "gpu", "devices": [0, 2, 3]}, 3),
        ({"accelerator": "gpu", "devices": "0,1"}, 2),
        ({"accelerator": "auto", "devices": "auto"}, 4),
        ({"accelerator": "gpu", "devices": -1}, 4),
    ],
)
def test_processes_of_a_trainer(monkeypatch, trainer, expected):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert environment.trainer_processes(trainer) == expected


def test_processes_that_lightning_starts_on_several_machines_are_numbered_through(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    environment.set_local_processes({"devices": 2, "num_nodes": 1})
    assert "LOCAL_WORLD_SIZE" not in os.environ
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "")  # so that it is taken back
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    environment.set_local_processes({"devices": 2, "num_nodes": 2})
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = []
    for node, local in (("0", "0"), ("0", "1"), ("1", "0"), ("1", "1")):
        monkeypatch.setenv("NODE_RANK", node)
        monkeypatch.setenv("LOCAL_RANK", local)
        found.append(environment.position())
    assert found == [(0, 4), (1, 4), (2, 4), (3, 4)]


def git(folder, *arguments):
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def test_a_checkout_names_its_commit_and_the_changes_that_decide_results(tmp_path):
    package = tmp_path / "src" / "partcraft_lit"
    package.mkdir(parents=True)
    (package / "a.py").write_text("1")
    (tmp_path / "README.md").write_text("1")
    assert environment.checkout(package) is None
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    found = environment.checkout(package)
    assert len(found.commit) == 40 and found.changed == ()
    (tmp_path / "README.md").write_text("2")
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "table.md").write_text("a result")
    assert environment.checkout(package).changed == ()
    (package / "a.py").write_text("2")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "my new.yaml").write_text("a: 1")
    assert set(environment.checkout(package).changed) == {"src/partcraft_lit/a.py", "conf/my new.yaml"}
    assert environment.checkout(package).commit == found.commit


def test_a_package_below_the_repository_of_others_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "venv" / "partcraft_lit").mkdir(parents=True)
    assert environment.checkout(tmp_path / "venv" / "partcraft_lit") is None
