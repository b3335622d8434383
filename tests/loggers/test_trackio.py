from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ["TRACKIO_DIR"] = tempfile.mkdtemp()  # before trackio is imported: nothing of a test goes to the user's own
pytest.importorskip("trackio")
sys.path.insert(0, str(Path(__file__).parent))

from scenes import IDENTITY, interrupted_and_resumed

from partcraft_lit.loggers import trackio_logger
from partcraft_lit.loggers.run_logger import Logged, ReplayLogger


def rows(project: str, logger) -> list[dict]:
    from trackio.sqlite_storage import SQLiteStorage

    return SQLiteStorage.get_logs(project, IDENTITY.name, run_id=logger.version)


@pytest.fixture
def make(tmp_path):
    return lambda **options: trackio_logger(tmp_path, IDENTITY, project=tmp_path.name, **options)


def test_a_resumed_run_is_one_run_with_configuration_curves_images_tables_and_scores(make, tmp_path, capfd):
    from trackio.sqlite_storage import SQLiteStorage

    first, second = interrupted_and_resumed(lambda: make(artifacts=True, tags=("mine",)), tmp_path)
    assert (first.trouble, second.trouble, first.version) == (None, None, second.version)
    logged = rows(tmp_path.name, second)
    assert [(row["step"], row["train/loss"]) for row in logged if "train/loss" in row] == [(n, n) for n in range(8)]
    assert [row["step"] for row in logged if "samples/grid" in row] == [3, 7]
    assert [row["eval/emr@reconstruction"] for row in logged if "eval/emr@reconstruction" in row] == [0.5]
    (table,) = [row["eval/images"] for row in logged if "eval/images" in row]
    assert table["_value"][0]["emr"] == 0.5
    assert table["_value"][0]["image"]["_type"] == "trackio.image"
    config = SQLiteStorage.get_run_config(tmp_path.name, IDENTITY.name, run_id=second.version)
    assert config["loss"] == {"lambda_attn": 0.1}
    assert (config["_Group"], config["job_type"]) == (IDENTITY.group, "train")
    assert config["tags"] == ["birds", "partcraft", "mini", "mine"]
    assert [entry["name"] for entry in SQLiteStorage.get_artifacts(tmp_path.name)] == [f"adapter-{second.version}"]
    assert capfd.readouterr() == ("", "")


def test_runs_of_one_name_stay_apart(make, tmp_path):
    others = [trackio_logger(tmp_path / who, IDENTITY, project=tmp_path.name) for who in ("ann", "ben")]
    for number, logger in enumerate(others):
        logger.log_metrics({"x": float(number)}, 0)
        logger.finish(success=True)
    assert [[row["x"] for row in rows(tmp_path.name, logger)] for logger in others] == [[0], [1]]


def test_it_says_what_it_has_for_a_replay(make, tmp_path):
    interrupted_and_resumed(make, tmp_path)
    logger = make(replay=True)
    assert isinstance(logger, ReplayLogger)
    logged = logger.logged()
    assert (logged.last_step, logged.counts["samples/grid"], logged.counts["eval/images"]) == (7, 2, 1)
    assert trackio_logger(tmp_path / "other", IDENTITY, project=tmp_path.name).logged() == Logged()


def test_trouble_costs_one_line(make, tmp_path, caplog, monkeypatch):
    from trackio.sqlite_storage import SQLiteStorage

    def refuse(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(SQLiteStorage, "get_max_step_for_run", refuse)
    logger = make()
    logger.log_metrics({"x": 1.0}, 0)
    logger.log_metrics({"x": 1.0}, 1)
    logger.finish(success=True)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith("trackio: No space left on device. The run goes on without it")
