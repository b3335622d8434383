from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import pytest
import wandb
from PIL import Image

os.environ.setdefault("TRACKIO_DIR", tempfile.mkdtemp())  # before trackio is imported
sys.path.insert(0, str(Path(__file__).parents[1]))

from partcraft_lit import cli
from partcraft_lit.callbacks.metrics_log import append_metrics
from partcraft_lit.core import rundir
from partcraft_lit.loggers import wandb_logger
from partcraft_lit.loggers.identity import RunIdentity, run_id, write_identity
from partcraft_lit.loggers.run_logger import finished
from partcraft_lit.scheduling.ledger import Entry, Ledger
from wandb_server import wandb_server

STEP = "trainer/global_step"
PARTS = ("background", "head", "wing")
GROUP = "sweep 2026-11-26"


pytestmark = pytest.mark.usefixtures("no_account")


@pytest.fixture
def server(monkeypatch):
    wandb.teardown()
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        yield server
        wandb.teardown()


def run_folder(folder: Path, lambda_attn: float = 0.1, seed: int = 0, steps: int = 8) -> Path:
    """What a run of ``steps`` steps leaves that drew its panels before the first step and after every fourth."""
    folder.mkdir(parents=True)
    write_identity(folder, RunIdentity(f"birds loss.lambda_attn={lambda_attn}", GROUP, "train", ("birds",)))
    config = {"seed": seed, "loss": {"lambda_attn": lambda_attn}, "logger": {"wandb": {"project": "birds"}}}
    (folder / "logger_config.json").write_text(json.dumps(config))
    for step in range(steps):
        append_metrics(folder / "metrics.jsonl", step, {"train/loss": 1.0 - step / 10})
        if step % 4 == 3:
            live = {"live/emr": step / 10, **{f"live/emr_{part}": step / 10 for part in PARTS}}
            append_metrics(folder / "metrics.jsonl", step, live)
    image = Image.new("RGB", (4, 4))
    for name in ("samples", "attention", "attention_leakage"):
        (folder / name).mkdir()
        for step in range(0, steps + 1, 4):
            image.save(folder / name / f"step_{step:06d}.png")
    return folder


def end(folder: Path, emr: float = 0.5) -> Path:
    """What its end adds."""
    scores = {"eval/emr@reconstruction": emr, "eval/cosim@reconstruction": 0.8, "untrained/emr@reconstruction": 0.1}
    scores |= {f"eval/{metric}_part/{part}@reconstruction": emr for part in PARTS for metric in ("emr", "cosim")}
    scores |= {"truth/part_accuracy@reconstruction": emr, "pictures/fid@mini-features@reconstruction": 9.0}
    (folder / "scores.json").write_text(json.dumps(scores))
    append_metrics(folder / "metrics.jsonl", 7, scores)
    (folder / "evaluation" / "reconstruction").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "evaluation" / "reconstruction" / "00000.png")
    row = f"reconstruction,0,1,a bird,reconstruction/00000.png,1 2,1 2,{emr}"
    (folder / "evaluation" / "scores.csv").write_text(f"protocol,index,seed,prompt,image,asked,found,emr/all\n{row}\n")
    for name in ("hybrids.png", "token_space.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    rundir.mark_finished(folder)
    return folder


def dashboard(tmp_path: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["dashboard", *arguments, f"paths.logs={tmp_path / 'logs'}", f"paths.store={tmp_path / 'store'}"])
    return int(ended.value.code or 0)


def is_clean(run) -> bool:
    assert run.curve("train/loss") == [(step, pytest.approx(1.0 - step / 10)) for step in range(8)]
    assert [step for step, _ in run.curve("live/emr_head")] == [3, 7]
    for key in ("samples/grid", "attention/overlay", "attention/leakage"):
        assert [step for step, _ in run.curve(key)] == [0, 3, 7]
    for key in ("hybrids/sources", "tokens/map", "eval/parts", "eval/images"):
        assert sum(key in row for row in run.history) == 1
    assert run.summary["eval/emr@reconstruction"] == 0.5
    assert run.summary["bounds/emr@untrained_reconstruction"] == 0.1
    assert not any("part/" in key for key in run.summary)
    assert run.config["loss"] == {"lambda_attn": 0.1}
    assert (run.name, run.group, run.job_type) == ("birds loss.lambda_attn=0.1", GROUP, "train")
    return True


def test_a_run_that_was_never_online_is_replayed_once_however_often(server, tmp_path, capfd):
    folder = end(run_folder(tmp_path / "elsewhere" / "run"))
    assert dashboard(tmp_path, "sync", f"runs=[{tmp_path / 'elsewhere'}]") == 0
    assert "8 steps and 9 images sent" in capfd.readouterr().out
    assert is_clean(server.runs[run_id(folder)])
    assert server.runs[run_id(folder)].project == "birds"
    assert dashboard(tmp_path, "sync", f"runs=[{folder}]") == 0
    assert "0 steps and 0 images sent" in capfd.readouterr().out
    assert is_clean(server.runs[run_id(folder)])
    assert not (folder / "wandb").exists()


def test_a_run_that_was_cut_off_is_completed(server, tmp_path):
    folder = end(run_folder(tmp_path / "run"))
    logger = wandb_logger(folder, RunIdentity("x"), project="birds", mode="auto", init_timeout_s=5, finish_timeout_s=5)
    with finished([logger]):
        logger.log_image("samples/grid", [str(folder / "samples" / "step_000000.png")], step=0)
        for step in range(4):
            logger.log_metrics(
                {"train/loss": 1.0 - step / 10}, step
            )  # the live score and the images of step 3 got lost
    assert dashboard(tmp_path, "sync", f"runs=[{folder}]") == 0
    assert is_clean(server.runs[run_id(folder)])
    assert list(server.runs) == [run_id(folder)]


def test_a_run_that_goes_on_after_a_replay_is_replayed_from_there(server, tmp_path):
    folder = run_folder(tmp_path / "run", steps=4)
    assert dashboard(tmp_path, "sync", f"runs=[{folder}]") == 0
    longer = run_folder(tmp_path / "longer")
    for name in (
        "metrics.jsonl",
        *(f"{panel}/step_000008.png" for panel in ("samples", "attention", "attention_leakage")),
    ):
        (folder / name).write_bytes((longer / name).read_bytes())
    end(folder)
    assert dashboard(tmp_path, "sync", f"runs=[{folder}]") == 0
    assert is_clean(server.runs[run_id(folder)])


def test_a_run_that_was_deleted_online_becomes_a_new_one(server, tmp_path, capfd):
    folder = end(run_folder(tmp_path / "run"))
    before = run_id(folder)
    server.refuse = lambda path, body: 409 if b"upsertBucket" in body and before.encode() in body else None
    assert dashboard(tmp_path, "sync", f"runs=[{folder}]", "logger.wandb.init_timeout_s=3") == 0
    assert "was deleted there; it becomes a new run." in capfd.readouterr().out
    assert run_id(folder) != before
    assert is_clean(server.runs[run_id(folder)])


def test_sync_without_a_key_or_a_server_has_one_clear_message(server, tmp_path, capfd, monkeypatch):
    folder = end(run_folder(tmp_path / "run"))
    server.refuse = lambda path, body: 500
    arguments = ["sync", f"runs=[{folder}]", "logger.wandb.init_timeout_s=2", "logger.wandb.finish_timeout_s=2"]
    assert dashboard(tmp_path, *arguments) == 2
    shown = capfd.readouterr().err
    assert "was not replayed, or only in part" in shown and "Traceback" not in shown
    monkeypatch.delenv("WANDB_API_KEY")
    assert dashboard(tmp_path, *arguments) == 2
    assert "there is no API key" in capfd.readouterr().err


def test_sync_into_trackio(tmp_path):
    from trackio.sqlite_storage import SQLiteStorage

    folder = end(run_folder(tmp_path / "run"))
    for _ in range(2):
        assert dashboard(tmp_path, "sync", f"runs=[{folder}]", "logger=trackio", f"project={tmp_path.name}") == 0
    rows = SQLiteStorage.get_logs(tmp_path.name, "birds loss.lambda_attn=0.1", run_id=run_id(folder))
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(8))
    assert [row["step"] for row in rows if "samples/grid" in row] == [0, 3, 7]
    assert [row["eval/emr@reconstruction"] for row in rows if "eval/emr@reconstruction" in row] == [0.5]


def test_what_is_no_run_or_group_is_named(tmp_path, capfd):
    folder = run_folder(tmp_path / "run")
    assert dashboard(tmp_path, "sync", f"runs=[{tmp_path / 'nowhere'}]") == 2
    assert "there is no folder" in capfd.readouterr().err
    assert dashboard(tmp_path, "sync", f"runs=[{folder}]", "group=sweep 2026-11-27") == 2
    assert f"Did you mean '{GROUP}'" in capfd.readouterr().err
    assert dashboard(tmp_path, "sync", f"runs=[{folder}]", "logger=csv") == 2
    assert "replays into logger=wandb, trackio or mlflow" in capfd.readouterr().err
    assert dashboard(tmp_path, "sync", f"runs=[{folder}]", "logger=none") == 2
    assert "needs a logger to replay into" in capfd.readouterr().err


def sweep(tmp_path: Path) -> Path:
    """Three values of lambda, two seeds."""
    root = tmp_path / "logs" / "train" / "multiruns" / "2026-11-26"
    for number, (value, seed) in enumerate((value, seed) for value in (0.001, 0.01, 0.1) for seed in (0, 1)):
        end(run_folder(root / str(number), value, seed), emr=0.4 + value + seed / 10)
    return root


def names_in(spec) -> set[str]:
    """Every metric, image and table that a specification refers to."""
    found: set[str] = set()
    if isinstance(spec, list):
        found = {name for entry in spec for name in names_in(entry)}
    elif isinstance(spec, dict):
        for key, value in spec.items():
            if key in ("metrics", "mediaKeys"):
                found |= set(value)
            elif key in ("accessor", "xAxis", "yAxis", "targetKey") and isinstance(value, str):
                found.add(value.removeprefix("summary:"))
            else:
                found |= names_in(value)
    return {name for name in found - {"step", "run"} if not name.startswith(("config:", "run:"))}


def panels_of(spec) -> list[dict]:
    return [panel for section in spec["section"]["panelBankConfig"]["sections"] for panel in section["panels"]]


def test_the_specification_shows_what_differs_and_only_what_was_logged(tmp_path, server, capfd):
    root = sweep(tmp_path)
    assert dashboard(tmp_path, "spec", f"output_dir={tmp_path / 'spec'}") == 0
    workspace = json.loads((tmp_path / "spec" / "workspace.json").read_text())
    panels = panels_of(workspace)
    (parallel,) = [panel for panel in panels if panel["viewType"] == "Parallel Coordinates Plot"]
    columns = [
        (column["accessor"], column.get("log"), column.get("inverted")) for column in parallel["config"]["columns"]
    ]
    assert columns == [
        ("config:loss.value.lambda_attn", True, None),
        ("config:seed.value", False, None),
        ("summary:eval/emr@reconstruction", None, False),
        ("summary:eval/cosim@reconstruction", None, False),
        ("summary:eval/part_accuracy@reconstruction", None, False),
        ("summary:eval/fid@mini-features@reconstruction", None, True),
    ]
    scatters = [panel["config"] for panel in panels if panel["viewType"] == "Scatter Plot"]
    assert [(plot["xAxis"], plot["xAxisLogScale"]) for plot in scatters] == [
        ("config:loss.value.lambda_attn", True)
    ] * 4
    images = [panel["config"] for panel in panels if panel["viewType"] == "Media Browser"]
    by_step = [plot["mediaKeys"] for plot in images if plot.get("gridSettings") == {"xAxis": "step", "yAxis": "run"}]
    assert by_step == [["samples/grid"], ["attention/overlay"], ["attention/leakage"]]
    report = (tmp_path / "spec" / "report.json").read_text(encoding="utf-8")
    assert "| loss.lambda_attn | runs | emr@reconstruction |" in report
    assert "| 0.001 | 2 | 0.451 ± 0.0707 |" in report
    assert GROUP in json.dumps(workspace["section"]["runSets"]) and GROUP in report

    assert dashboard(tmp_path, "sync", f"runs=[{root / '0'}]") == 0
    (run,) = server.runs.values()
    logged = {*run.summary, *(key for row in run.history for key in row)}
    asked = names_in(workspace) | names_in(json.loads(report))
    assert {"live/emr_head", "hybrids/sources", "train/loss"} <= asked
    assert asked <= logged
    assert '"eval/parts"' in json.dumps(workspace) and '"eval/images"' in json.dumps(workspace)


def test_runs_without_scores_are_named_with_what_became_of_them(tmp_path, capfd):
    root = sweep(tmp_path)
    run_folder(root / "6", 1.0, 0)
    ledger = Ledger(root)
    ledger.append(Entry("a", "loss.lambda_attn=0.001 seed=0", "done", "0"))
    ledger.append(Entry("b", "loss.lambda_attn=1 seed=1", "failed", "7", message="partcraft: it broke.\nmore"))
    assert dashboard(tmp_path, "spec", f"output_dir={tmp_path / 'spec'}") == 0
    named = ("loss.lambda_attn=1 seed=1: failed: it broke.", "birds loss.lambda_attn=1.0: no final scores")
    report, out = (tmp_path / "spec" / "report.json").read_text(encoding="utf-8"), capfd.readouterr().out
    assert all(f"- {text}" in report and text in out for text in named)
    assert "more" not in out and out.count("without scores") == 2


def test_workspace_and_report_are_saved_and_made_again_in_place(tmp_path, server, capfd):
    sweep(tmp_path)
    for _ in range(2):
        assert dashboard(tmp_path, "entity=lab") == 0
        shown = capfd.readouterr()
        assert "workspace: " in shown.out and "report: " in shown.out and "/lab/birds" in shown.out
        assert not shown.err
        kinds = [(view["type"], view["entityName"], view["projectName"]) for view in server.views.values()]
        assert kinds == [("project-view", "lab", "birds"), ("runs", "lab", "birds")]
    deleted = list(server.views)[1].encode()
    server.refuse = lambda path, body: 404 if b'"id":"' + deleted in body.replace(b'": "', b'":"') else None
    assert dashboard(tmp_path, "entity=lab") == 0
    assert [view["type"] for view in server.views.values()] == ["project-view", "runs", "runs"]


def test_trouble_with_a_dashboard_has_one_clear_message(tmp_path, server, capfd, monkeypatch):
    end(run_folder(tmp_path / "logs" / "train" / "runs" / "a"))
    server.refuse = lambda path, body: 404 if b"upsertView" in body else None
    assert dashboard(tmp_path, "entity=nobody") == 2
    shown = capfd.readouterr().err
    assert (
        "W&B did not take the dashboard: " in shown and "Check entity=, project=" in shown and "Traceback" not in shown
    )
    monkeypatch.delenv("WANDB_API_KEY")
    assert dashboard(tmp_path, "entity=nobody") == 2
    assert "there is no API key" in capfd.readouterr().err
    assert dashboard(tmp_path, "spec", "parameters=[loss.lambda_atn]") == 2
    assert "Did you mean 'loss.lambda_attn'" in capfd.readouterr().err
