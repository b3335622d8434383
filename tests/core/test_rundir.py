from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime

import pytest

from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError

NOW = datetime(2030, 1, 2, 3, 4, 5)


def make(folder):
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text("seed: 0\n")
    return folder


def test_hash_follows_what_is_trained_and_nothing_else():
    values = {"seed": 0, "lora": {"rank": 4, "scope": "cross"}, "trainer": {"max_steps": 10, "precision": "32-true"}}
    same = [
        {"lora": {"scope": "cross", "rank": 4}, "trainer": values["trainer"], "seed": 0},
        {**values, "trainer": {"max_steps": 99, "precision": "32-true"}},
        {**values, "paths": {"logs": "x"}, "logger": None, "ckpt_path": "y", "callbacks": {}, "data": {}}
        | {"data": {"num_workers": 3}},
    ]
    different = [{**values, "seed": 1}, {**values, "trainer": {"max_steps": 10, "precision": "bf16-mixed"}}]
    digest = rundir.settings_hash(values)
    assert rundir.settings_hash(same[0]) == rundir.settings_hash(same[1]) == digest
    without_workers = rundir.settings_hash({**values, "data": {}})
    assert rundir.settings_hash(same[2]) == without_workers
    assert len({digest, *map(rundir.settings_hash, different)}) == 3


def test_a_key_that_came_later_leaves_older_runs_their_hash():
    values = {"seed": 0, "data": {"flip": True}}
    now, changed = ({"seed": 0, "data": {"flip": True, "crops": crops}} for crops in ("cut", 4))
    assert rundir.settings_hash(values) == rundir.settings_hash(now) != rundir.settings_hash(changed)
    assert rundir.with_younger(values) == now
    assert rundir.with_younger(changed) == changed
    assert rundir.with_younger({"seed": 0}) == {"seed": 0}


def test_two_starts_in_one_second_get_two_folders(tmp_path):
    first = rundir.new_folder(tmp_path, "abcd1234", NOW)
    second = rundir.new_folder(tmp_path, "abcd1234", NOW)
    assert first.is_dir() and second.is_dir()  # taken at once, so that no other process can
    assert first.name == "2030-01-02_03-04-05-abcd1234"
    assert second.name == "2030-01-02_03-04-05.2-abcd1234"


def test_the_newest_unfinished_run_with_the_hash_is_found(tmp_path):
    for name in (
        "2030-01-01_00-00-00-aa",
        "2030-01-02_00-00-00-aa",
        "2030-01-03_00-00-00-aa",
        "2030-01-04_00-00-00-bb",
    ):
        (tmp_path / name).mkdir()
    rundir.mark_finished(tmp_path / "2030-01-03_00-00-00-aa", steps=5)
    assert rundir.unfinished(tmp_path, "aa") == tmp_path / "2030-01-02_00-00-00-aa"
    assert rundir.unfinished(tmp_path, "cc") is None
    with rundir.held(tmp_path / "2030-01-02_00-00-00-aa"):
        assert rundir.unfinished(tmp_path, "aa") == tmp_path / "2030-01-01_00-00-00-aa"
    assert rundir.unfinished(tmp_path / "missing", "aa") is None


def test_a_folder_is_held_by_one_process_until_it_dies(tmp_path):
    script = (
        "import sys, time; from pathlib import Path; from partcraft_lit.core import rundir\n"
        "with rundir.held(Path(sys.argv[1])):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        assert rundir.in_use(tmp_path)
        with pytest.raises(UserError, match="Another process is working in"), rundir.held(tmp_path):
            pass
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert not rundir.in_use(tmp_path)
    with rundir.held(tmp_path):
        pass


def test_a_forked_child_does_not_inherit_the_folder(tmp_path):
    """Loader workers outlive a killed process by seconds; a run must be continued at once all the same."""
    script = (
        "import os, sys, time; from pathlib import Path; from partcraft_lit.core import rundir\n"
        "with rundir.held(Path(sys.argv[1])):\n"
        "    parent = os.fork()\n"
        "    print(os.getpid(), flush=True) if not parent else None\n"  # the child, when it is ready
        "    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    try:
        assert rundir.in_use(tmp_path)
        process.kill()
        process.wait()
        assert not rundir.in_use(tmp_path)
        os.kill(child, 0)  # it is still there
    finally:
        process.kill()
        os.kill(child, signal.SIGKILL)


def test_find_run(tmp_path):
    old = make(tmp_path / "2030-01-01_00-00-00-aa")
    new = make(tmp_path / "2030-01-02_00-00-00-bb")
    assert rundir.find_run("latest", tmp_path) == new
    rundir.mark_finished(old)
    assert rundir.find_run("latest", tmp_path) == old  # a finished run before one that is still under way
    assert rundir.find_run(new.name, tmp_path) == rundir.find_run(str(new), tmp_path) == new
    with pytest.raises(UserError, match=r"run=nope: no such run\. Newest in .*-bb, .*-aa"):
        rundir.find_run("nope", tmp_path)
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"not a run: it has no \.hydra/config\.yaml"):
        rundir.find_run(str(tmp_path / "other"), tmp_path)
    with pytest.raises(UserError, match="Train one first"):
        rundir.find_run("latest", tmp_path / "empty")


def test_what_was_saved(tmp_path):
    assert "no checkpoint was written yet" in rundir.saved_so_far(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step=000002.ckpt").touch()
    assert "step=000002.ckpt" in rundir.saved_so_far(tmp_path)


def test_the_length_counts_where_the_rates_fall_at_the_end():
    def digest(cooldown: int, total: int) -> str:
        optim = {"cooldown_steps": cooldown, "total_steps": total}
        return rundir.settings_hash({"optim": optim, "trainer": {"max_steps": total}})

    assert digest(0, 100) == digest(0, 200)
    assert digest(10, 100) != digest(10, 200)


def test_a_start_that_made_nothing_leaves_no_folder(tmp_path):
    folder = make(tmp_path / "run")
    for name in ("run.log", "run.lock", "environment.json"):
        (folder / name).touch()
    (folder / "metrics.jsonl").touch()
    rundir.discard_unused(folder)
    assert folder.is_dir()
    (folder / "metrics.jsonl").unlink()
    rundir.discard_unused(folder)
    assert not folder.exists()
