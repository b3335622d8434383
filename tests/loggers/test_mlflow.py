from __future__ import annotations

import importlib.util
import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from scenes import IDENTITY, interrupted_and_resumed

from partcraft_lit.core.errors import UserError
from partcraft_lit.loggers import mlflow_logger
from partcraft_lit.loggers.background import Background
from partcraft_lit.loggers.guard import Guard

installed = importlib.util.find_spec("mlflow") is not None
needs_mlflow = pytest.mark.skipif(not installed, reason="mlflow is not installed")


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    place = str(tmp_path / "mlflow")
    return lambda **options: mlflow_logger(tmp_path / "run", IDENTITY, experiment="p", place=place, **options)


@needs_mlflow
def test_a_resumed_run_is_one_run_with_configuration_curves_images_tables_and_scores(make, tmp_path):
    from mlflow import MlflowClient

    first, second = interrupted_and_resumed(lambda: make(artifacts=True, tags=("mine",)), tmp_path)
    assert (first.trouble, second.trouble, first.version) == (None, None, second.version)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    curve = client.get_metric_history(run.info.run_id, "train/loss")
    assert [(point.step, point.value) for point in curve] == [(n, n) for n in range(8)]
    assert run.data.metrics["eval/emr.reconstruction"] == 0.5
    assert run.data.params == {"loss.lambda_attn": "0.1", "trainer.max_steps": "5"}  # MLflow refuses to change one
    assert (run.data.tags["group"], run.data.tags["job_type"]) == (IDENTITY.group, "train")
    assert run.data.tags["tags"] == "birds, partcraft, mini, mine"
    assert (run.info.run_name, run.info.status) == (IDENTITY.name, "FINISHED")
    files = Path(run.info.artifact_uri.removeprefix("file://"))
    assert json.loads((files / "config.json").read_text())["trainer"] == {"max_steps": 8}
    assert (files / "eval/images.csv").read_text() == "image,emr\neval/images/reconstruction/00000.png,0.5\n"
    assert (files / "eval/images/reconstruction/00000.png").is_file()
    assert (files / "adapter/00000.png").is_file()
    logged = make(replay=True).logged()
    assert (logged.last_step, logged.count("samples/grid"), logged.count("eval/images")) == (7, 2, 1)
    assert (logged.count("train/loss"), logged.count("eval/emr@reconstruction")) == (8, 1)


@needs_mlflow
def test_a_server_that_is_not_there_costs_one_line_and_no_time(make, caplog):
    logger = make(tracking_uri="http://127.0.0.1:9", init_timeout_s=0.5)
    started = time.monotonic()
    logger.log_metrics({"x": 1.0}, 0)
    assert time.monotonic() - started < 0.1
    logger.finish(success=True)
    assert time.monotonic() - started < 3
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("partcraft")]
    assert line.startswith("MLflow: ")


@pytest.mark.skipif(installed, reason="mlflow is installed")
def test_a_missing_package_is_named(make):
    with pytest.raises(
        UserError, match=r"logger=mlflow: mlflow is not installed. pip install 'partcraft-lit\[mlflow\]'"
    ):
        make()


def test_calls_in_the_background_end_with_the_first_that_fails(caplog):
    done = []
    background = Background(Guard("S", "It goes on."), init_timeout_s=5)
    background.put(lambda: done.append(1))
    background.put(lambda: 1 / 0)
    background.put(lambda: done.append(2))
    background.close(5)
    assert done == [1]
    assert [record.getMessage() for record in caplog.records] == ["S: division by zero. It goes on."]


def test_a_call_that_hangs_is_given_up(caplog):
    background = Background(Guard("S", "It goes on."), init_timeout_s=0.1)
    background.put(lambda: time.sleep(20))
    started = time.monotonic()
    background.close(60)
    assert time.monotonic() - started < 2
    assert [record.getMessage() for record in caplog.records] == ["S: it did not answer in time. It goes on."]
