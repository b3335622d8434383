"""The configuration of a run folder that came from somebody else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from partcraft_lit import cli
from partcraft_lit.config import compose as config
from partcraft_lit.core.errors import UserError
from partcraft_lit.runs import stored


@pytest.fixture
def run(tmp_path):
    """A run folder as ``partcraft train`` begins it."""
    (tmp_path / "run" / ".hydra").mkdir(parents=True)
    OmegaConf.save(config.compose("train"), tmp_path / "run" / ".hydra" / "config.yaml")
    return tmp_path / "run"


def change(run, key, value):
    path = run / ".hydra" / "config.yaml"
    stored = OmegaConf.load(path)
    OmegaConf.update(stored, key, value, merge=False)
    OmegaConf.save(stored, path)


@pytest.mark.parametrize("verb", ["generate", "evaluate", "export", "merge"])
@pytest.mark.parametrize("group", ["backbone", "dataset", "method", "features.mini", "metrics.mini"])
def test_nothing_of_a_run_folder_is_called(run, tmp_path, monkeypatch, capsys, verb, group):
    monkeypatch.chdir(tmp_path)
    change(run, group, {"_target_": "os.system", "command": "touch marker"})
    shutil.copytree(run, f"{run}x")
    given = {"generate": ["prompt=x", f"run={run}"], "merge": [f"runs=[{run},{run}x]"]}.get(verb, [f"run={run}"])
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, *given, f"paths.logs={tmp_path}", "trainer=cpu"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and not Path("marker").exists() and "Traceback" not in said
    assert f"{group}._target_=os.system is a class of somebody's own" in said and "trust=true" in said


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "partcraft_lit.cli.os.system",  # a name below the package, of a module that it imports
        "partcraft_lit.core.files.atomic_write",  # a function of ours, with a path and a text of theirs
        "lightning.pytorch.loggers.logger.os.system",
    ],
)
def test_only_classes_that_conf_names_are_made(run, target):
    change(run, "dataset._target_", target)
    with pytest.raises(UserError, match="is a class of somebody's own"):
        stored.values_of_run(run)
    assert stored.values_of_run(run, trust=True)["dataset"]["_target_"] == target


def test_lightning_s_loggers_are_known(run):
    change(run, "logger", {"tb": {"_target_": "lightning.pytorch.loggers.TensorBoardLogger"}})
    assert "tb" in stored.values_of_run(run)["logger"]


@pytest.mark.parametrize(
    "text", ["${oc.env:HOME}", "x${ oc.env:HOME}", "${oc.${paths.logs}:HOME}", "${${seed}:x}", "${oc.decode:seed}"]
)
def test_variables_of_this_machine_are_not_read(run, text):
    change(run, "sample.negative_prompt", text)
    with pytest.raises(UserError, match=r"sample\.negative_prompt=.*asks for more than a key"):
        stored.values_of_run(run)


def test_references_to_keys_and_own_resolvers_are_resolved(run):
    values = stored.values_of_run(run)
    assert values["optim"]["total_steps"] == values["trainer"]["max_steps"] == 1200
    assert values["parts"]["names"] == ["head", "wing", "body", "tail", "legs"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: [1", "cannot be read as a configuration"),
        ("seed: !!python/object/apply:os.system ['touch marker']", "cannot be read as a configuration"),
        ("- 1", "wanted a group of keys"),
        ("", None),
        (b"\xff\xfe\x00", "cannot be read as a configuration"),
        ("a: &a [*a]", "has no aliases"),
        ("a: &a [x, x]\nb: [*a, *a]", "has no aliases"),  # nine such lines of nine are 400 million
    ],
)
def test_broken_files_are_a_message(run, tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (run / ".hydra" / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    if message:
        with pytest.raises(UserError, match=message):
            stored.values_of_run(run)
    assert not Path("marker").exists()


def test_switches_are_true_or_false(run, tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "prompt=x", f"run={run}", "trust=perhaps", f"paths.logs={tmp_path}"])
    assert "trust='perhaps': wanted true or false" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "[1, 2", "[1]", '{"parts": []}'])
def test_what_discovery_wrote_is_missing_or_damaged(tmp_path, content):
    (tmp_path / "parts").mkdir()
    if content is not None:
        (tmp_path / "parts" / "discovery.json").write_text(content)
    with pytest.raises(UserError, match=r"discovery\.json .*; train the run again"):
        stored.discovery_metadata(tmp_path)
