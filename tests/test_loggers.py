from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import wandb
from PIL import Image

from partcraft_lit import cli
from partcraft_lit.commands.train.logs import headline
from partcraft_lit.loggers import csv_logger, has_wandb_key, wandb_logger
from partcraft_lit.loggers.identity import RunIdentity, grouped, run_id
from partcraft_lit.loggers.run_logger import finished

sys.path.insert(0, str(Path(__file__).parent))  # pytest's importlib mode adds no folder to the path by itself

from wandb_server import wandb_server

IDENTITY = RunIdentity("birds loss.lambda_attn=0.1", "sweep 2026-11-26", "train", ("birds", "partcraft", "mini"))
STEP = "trainer/global_step"


pytestmark = pytest.mark.usefixtures("no_account")


@pytest.fixture
def server(monkeypatch):
    wandb.teardown()  # else the process keeps the settings of an earlier server
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server
        wandb.teardown()


def online(folder, identity=IDENTITY, **timeouts):
    timeouts = {"init_timeout_s": 3.0, "finish_timeout_s": 2.0, **timeouts}
    return wandb_logger(folder, identity, project="p", mode="auto", **timeouts)


def told(caplog):
    return [record.getMessage() for record in caplog.records if record.name.startswith("partcraft_lit")]


def test_a_key_is_seen_in_the_environment_and_in_netrc(monkeypatch, tmp_path):
    assert not has_wandb_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + "0" * 40)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert has_wandb_key()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert not has_wandb_key()


def test_a_broken_netrc_is_no_key(tmp_path):
    (tmp_path / "netrc").write_text("machine")
    assert not has_wandb_key()


def test_without_a_key_wandb_logs_offline_into_the_run_folder_and_says_nothing(tmp_path, capfd, caplog):
    folder = tmp_path / "birds#2"
    folder.mkdir()
    logger = wandb_logger(folder, project="p", mode="auto", tags=("a",))
    logger.log_metrics({"x": 1.0}, step=0)
    logger.finish(success=True)
    assert list(folder.glob(f"wandb/offline-run-*/run-{logger.version}.wandb"))
    assert capfd.readouterr() == ("", "")
    assert not told(caplog)


def test_the_id_is_kept_in_the_folder_and_belongs_to_it_alone(tmp_path):
    first, second = (run_id(tmp_path / person / "birds") for person in ("ann", "ben"))
    assert first != second
    assert run_id(tmp_path / "ann" / "birds") == first


def test_commands_that_a_table_starts_are_of_its_group_unless_they_have_one(monkeypatch):
    ask = [sys.executable, "-c", "import os; print(os.environ.get('WANDB_RUN_GROUP'))"]
    group = lambda: subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()  # noqa: E731
    monkeypatch.delenv("WANDB_RUN_GROUP", raising=False)
    with grouped("main 2026-11-26"):
        assert group() == "main 2026-11-26"
    assert group() == "None"
    monkeypatch.setenv("WANDB_RUN_GROUP", "mine")
    with grouped("main 2026-11-26"):
        assert group() == "mine"


def test_w_and_b_can_be_switched_off_as_it_documents(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = wandb_logger(tmp_path, project="p", mode="auto")
    with finished([logger]):
        logger.log_metrics({"x": 1.0}, step=0)
        logger.log_summary({"eval/emr": 1.0})
    assert not (tmp_path / "wandb").exists()


def test_the_summary_has_few_scores_with_bounds_apart():
    scores = {
        "eval/emr@reconstruction": 0.5,
        "eval/emr_without_background@reconstruction": 0.4,
        "eval/emr_part/head@reconstruction": 0.3,
        "untrained/emr@reconstruction": 0.1,
        "ceiling/emr@vae_round_trip": 0.9,
        "truth/part_accuracy@reconstruction": 0.6,
        "truth/part_accuracy_head@reconstruction": 0.6,
        "truth/part_accuracy@untrained_reconstruction": 0.2,
        "pictures/fid@tf-299@reconstruction": 12.0,
        "pictures/fid@tf-299@ceiling_reconstruction": 3.0,
        "codes/head": 2.0,
    }
    assert headline(scores) == {
        "eval/emr@reconstruction": 0.5,
        "eval/part_accuracy@reconstruction": 0.6,
        "eval/fid@tf-299@reconstruction": 12.0,
        "bounds/emr@untrained_reconstruction": 0.1,
        "bounds/emr@ceiling_vae_round_trip": 0.9,
        "bounds/part_accuracy@untrained_reconstruction": 0.2,
        "bounds/fid@tf-299@ceiling_reconstruction": 3.0,
    }


def test_csv_starts_a_new_version_each_time(tmp_path):
    for version in ("version_0", "version_1"):
        logger = csv_logger(tmp_path)
        logger.log_metrics({"x": 1.0}, step=0)
        logger.save()
        assert (tmp_path / "csv" / version / "metrics.csv").is_file()


def test_wandb_gets_identity_configuration_curves_and_summary(server, tmp_path, capfd, caplog):
    logger = online(tmp_path / "birds#2")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with finished([logger]):
        logger.log_hyperparams({"loss": {"lambda_attn": 0.1}, "effective": {"M": 4}})
        for step, score in enumerate((0.1, 0.9, 0.3)):
            logger.log_metrics({"live/score": score, "train/loss": 1 - score, "train/lr_tokens": 0.01}, step)
        logger.log_image("samples/grid", [Image.new("RGB", (4, 4))], step=2, caption=["step 3"])
        logger.log_table("eval/images", columns=["image", "emr"], data=[[tmp_path / "a.png", 0.5]])
        logger.log_summary({"eval/emr@reconstruction": 0.5})
    (run,) = server.runs.values()
    assert (run.name, run.group, run.job_type) == (IDENTITY.name, IDENTITY.group, "train")
    assert run.tags == ["birds", "partcraft", "mini"]
    assert run.config["loss"] == {"lambda_attn": 0.1}
    assert run.config["effective"] == {"M": 4}
    assert run.curve("train/loss") == [(0, 0.9), (1, pytest.approx(0.1)), (2, 0.7)]
    assert run.summary["live/score"] == {"last": 0.3, "max": 0.9}
    assert run.summary["train/loss"] == {"last": 0.7, "min": pytest.approx(0.1)}
    assert run.summary["train/lr_tokens"] == 0.01
    assert run.summary["eval/emr@reconstruction"] == 0.5
    assert run.curve("samples/grid")[0][0] == 2
    assert any("eval/images" in row for row in run.history)
    assert any(name.startswith("media/images/samples/grid") for name in run.files)
    assert run.exit_codes == [0]
    assert capfd.readouterr() == ("", "")
    assert not told(caplog)


def test_each_job_of_a_process_is_a_run_of_its_own_also_after_an_error(server, tmp_path):
    for job in range(3):
        logger = online(tmp_path / str(job))
        try:
            with finished([logger]):
                logger.log_metrics({"x": float(job)}, step=0)
                if job == 1:
                    raise RuntimeError("a bug")
        except RuntimeError:
            pass
    assert [run.summary["x"] for run in server.runs.values()] == [0, 1, 2]
    assert [run.exit_codes for run in server.runs.values()] == [[0], [1], [0]]


def test_a_resumed_run_goes_on_without_doubled_steps(server, tmp_path):
    for steps in (range(5), range(3, 8)):  # interrupted at step 4, with a checkpoint of step 3
        logger = online(tmp_path)
        with finished([logger]):
            for step in steps:
                logger.log_metrics({"x": float(step)}, step)
                if step in (3, 7):
                    logger.log_image("samples/grid", [Image.new("RGB", (4, 4))], step=step)
    (run,) = server.runs.values()
    assert run.curve("x") == [(step, step) for step in range(8)]
    assert [step for step, _ in run.curve("samples/grid")] == [3, 7]


def test_files_become_artifacts_only_if_asked_for(server, tmp_path):
    for artifacts in (False, True):
        logger = online(tmp_path / str(artifacts), artifacts=artifacts)
        logger.log_files("adapter", {"step=000008.ckpt": Path(__file__)})
        logger.log_metrics({"x": 1.0}, step=0)
        logger.finish(success=True)
        assert server.artifacts == ([f"adapter-{logger.version}"] if artifacts else [])


def test_the_agent_of_a_sweep_names_the_run(server, tmp_path, monkeypatch, capfd, caplog):
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    monkeypatch.setenv("WANDB_RUN_ID", "drawn1")
    monkeypatch.setenv("WANDB_PROJECT", "p")
    logger = online(tmp_path)
    with finished([logger]):
        logger.log_metrics({"x": 1.0}, step=0)
    assert server.runs.keys() == {"drawn1"}
    assert run_id(tmp_path) == "drawn1"
    assert capfd.readouterr() == ("", "")
    assert not told(caplog)


def refusing(answer, part):
    return lambda path, body: answer if part in path or part.encode() in body else None


@pytest.mark.parametrize(
    "refuse",
    [refusing(401, "/"), refusing(409, "upsertBucket"), refusing(500, "/"), refusing("hang", "/"), None],
    ids=["401", "409", "500", "hangs", "unreachable"],
)
def test_a_server_that_refuses_at_the_start_costs_one_line(server, tmp_path, monkeypatch, capfd, caplog, refuse):
    server.refuse = refuse
    if refuse is None:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    started = time.monotonic()
    logger = online(tmp_path)
    with finished([logger]):
        logger.log_hyperparams({"a": 1})
        logger.log_metrics({"x": 1.0}, step=0)
        logger.log_table("t", columns=["a"], data=[[1]])
    assert time.monotonic() - started < 15
    assert list(tmp_path.glob(f"wandb/offline-run-*/run-{logger.version}.wandb"))
    (line,) = told(caplog)
    assert "The run goes on and is logged in" in line
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "refuse",
    [
        refusing(401, "/"),
        refusing(409, "file_stream"),
        refusing(404, "file_stream"),
        refusing(500, "/"),
        refusing("hang", "/"),
    ],
    ids=["401", "409", "deleted", "500", "hangs"],
)
def test_a_server_that_refuses_later_costs_one_line(server, tmp_path, capfd, caplog, refuse):
    logger = online(tmp_path)
    logger.log_metrics({"x": 0.0}, step=0)
    server.refuse = refuse
    logger.log_metrics({"x": 1.0}, step=1)
    started = time.monotonic()
    logger.finish(success=True)
    assert time.monotonic() - started < 10
    assert list(tmp_path.glob(f"wandb/run-*/run-{logger.version}.wandb"))
    (line,) = told(caplog)
    assert "The run goes on and is logged in" in line
    assert capfd.readouterr().err == ""


def test_a_slow_server_gets_everything_and_training_does_not_wait(server, tmp_path, caplog):
    server.refuse = refusing("slow", "/")
    logger = online(tmp_path, init_timeout_s=20.0, finish_timeout_s=20.0)
    logger.log_metrics({"x": 0.0}, step=0)
    started = time.monotonic()
    for step in range(1, 100):
        logger.log_metrics({"x": float(step)}, step=step)
    assert time.monotonic() - started < 1
    logger.finish(success=True)
    (run,) = server.runs.values()
    assert len(run.curve("x")) == 100
    assert not told(caplog)


@pytest.mark.slow
def test_a_sweep_is_one_group_with_a_run_per_job_that_has_its_configuration(server, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["train", "-m", "experiment=demo", "logger=wandb", "loss.lambda_attn=0,0.1", "dataset.images_per_species=1",
             "parts.K=2", "trainer=cpu", "trainer.max_steps=2", "trainer.log_every_n_steps=1", "data.batch_size=1",
             "~callbacks.samples", "~callbacks.attention_maps", "sample.steps=1", "eval.reconstructions=1",
             "eval.compositions=0", "eval.untrained=1", "eval.ceiling_images=1", "eval.pictures=[]", "eval.hybrids=1",
             f"paths.logs={tmp_path / 'logs'}", f"paths.store={tmp_path / 'store'}"]
        )  # fmt: skip
    assert ended.value.code == 0, capsys.readouterr()
    runs = list(server.runs.values())
    assert [run.config["loss"]["lambda_attn"] for run in runs] == [0, 0.1]
    assert [run.name for run in runs] == ["demo loss.lambda_attn=0", "demo loss.lambda_attn=0.1"]
    (group,) = {run.group for run in runs}
    assert group.startswith("sweep 20")
    for run in runs:
        assert (run.job_type, run.exit_codes) == ("train", [0])
        assert run.tags == ["creatures", "partcraft_balanced", "mini"]
        effective = run.config["effective"]
        assert (effective["M"], effective["K"]) == (run.config["parts"]["M"], 2)
        assert effective["codes_per_part"]["background"] == 2
        assert effective["trainable_parameters"] == sum(effective["trainable_parameters_of"].values())
        assert effective["images"] > 1
        assert run.config["packages"]["torch"]
        assert len(run.config["settings_hash"]) == 8
        assert [step for step, _ in run.curve("train/loss")] == [0, 1]
        assert [step for step, _ in run.curve("train/lr_mapper")] == [0, 1]
        assert run.curve("tokens/map") and run.curve("hybrids/sources")
        assert {"eval/emr@reconstruction", "bounds/emr@untrained_reconstruction"} <= run.summary.keys()
        assert not any("part/" in key for key in run.summary)
        assert run.curve("eval/parts") and run.curve("eval/images") and run.curve("parts/atlas")
