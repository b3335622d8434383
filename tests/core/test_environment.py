from __future__ import annotations

import json

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
    ],
)
def test_position_among_the_processes_of_a_run(monkeypatch, variables, expected):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "NODE_RANK", "LOCAL_WORLD_SIZE"):
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
