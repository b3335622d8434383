"""The fuzz script finds nothing on a few commands, and notices what it is there for."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parents[1] / "tools" / "fuzz_cli.py"


@pytest.fixture
def tool(monkeypatch, tmp_path):
    if not TOOL.is_file():
        pytest.skip("not a checkout")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    spec = importlib.util.spec_from_file_location("fuzz_cli", TOOL)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fuzz_cli", module)
    spec.loader.exec_module(module)
    # These also undo what the tool sets.
    monkeypatch.setattr(module.cli, "run_job", lambda cfg, module, progress: None)
    monkeypatch.setattr(module.launchers, "run_tasks", lambda *arguments: module.Outcome())
    return module


def test_commands_are_accepted_or_refused(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "VERBS", {"train": 3, "generate": 1, "fetch": 1})
    assert tool.run(12, seed=5) == 0, capsys.readouterr().out


def test_a_traceback_is_noticed(tool, monkeypatch, capsys):
    monkeypatch.setattr(tool, "commands", lambda count, seed: iter([["train", "seed=1"]]))
    monkeypatch.setattr("partcraft_lit.commands.train.check", lambda values: 1 / 0)
    assert tool.run(1, seed=0) == 1
    assert "ZeroDivisionError" in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [
        ["fetch", "dataset=sims4_faces", "timeout_s=inf"],
        ["fetch", "dataset=\x00"],
        ["train", "sample=-1", "lora=/proc/nope"],
        ["train", "-m", "lora=3.5"],
        ["train", "attention=[1,[2]]"],
        ["evaluate", "paths=true"],
        ["train", "callbacks.metrics=/proc/nope"],
        ["train", "~data.num_workers"],
        ["train", "~parts.features"],
        ["train", "trainer=null"],
        ["doctor", "callbacks.checkpoints._target_={a:1}"],
        ["store", "hydra.run.dir=${seed}"],
        ["discover", "paths.data=\x00"],
        ["train", "-m", "features.dinov2_small.size=\udcff"],
    ],
)
def test_what_it_found_stays_mended(tool, command):
    code, text, _ = tool.outcome(command)
    assert code == 2 and "Traceback" not in text, text
