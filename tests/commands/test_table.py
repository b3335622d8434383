"""The verb ``table``: what it plans, trains, finds, writes and verifies."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from partcraft_lit import cli
from partcraft_lit.commands import evaluate
from partcraft_lit.commands import table as verb
from partcraft_lit.commands.table import table as run_table
from partcraft_lit.config import compose as config
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image
from partcraft_lit.evaluation.image_scores import write_networks, write_rows
from partcraft_lit.scheduling.tasks import Outcome

TABLES = sorted(path.stem for path in (config.conf_dir() / "table").glob("*.yaml"))
METHODS = {path.stem for path in (config.conf_dir() / "method").glob("*.yaml")}


@pytest.fixture
def settings(tmp_path):
    def made(*overrides, table="lambda_attn"):
        given = [f"table={table}", f"paths.logs={tmp_path}/logs", f"paths.store={tmp_path}/store", *overrides]
        written = [config.as_written(text, multirun=False) for text in given]
        return verb.check(config.plain(config.compose("table", written)))

    return made


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", TABLES)
def test_every_row_of_every_table_composes(name, scale, settings):
    values = config.plain(config.compose("table", [f"table={name}", f"scale={scale}"]))
    rows = values["table"]["rows"]
    known = [row for row in rows if not _methods_of(rows[row]) - METHODS]
    for row in rows.keys() - known:
        with pytest.raises(UserError, match=rf"table\.rows\.{row}: method="):
            settings(f'rows=["{row}"]', f"scale={scale}", table=name)
    chosen = ",".join(f"'{row}'" for row in known)
    planned = settings(f"rows=[{chosen}]", f"scale={scale}", table=name)
    assert verb.rows_of(planned) == known


def _methods_of(row):
    given = [*row.get("overrides", []), *row.get("small", []), *row.get("paper", [])]
    return {text.partition("=")[2] for text in given if text.startswith("method=")}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rows=['1e-22']"], r"'1e-22' is no row of table=lambda_attn\. Did you mean '1e-2'"),
        (["rows=['0']", "overrides=method=partcaft"], r"table\.rows\.0: method=partcaft: no such option\. Did you"),
        (["rows=['0']", "overrides=lora.rnk=3"], r"table\.rows\.0: Unknown key 'lora\.rnk'"),
        (["rows=['0']", "table.figure.panels=[EMRR]"], r"'EMRR' is none\. Did you mean 'EMR'"),
        (["+table.rows.0.reported.FIT=1"], r"table\.rows\.0\.reported\.FIT: no such column"),
        (["table.seeds=[]"], r"at least one seed"),
        (["scale=large"], r"scale='large': wanted one of small, paper"),
        (["jobs=0"], r"jobs=0"),
        (["~table.rows.0", "rows=['0']"], r"'0' is no row"),
    ],
)
def test_mistakes_are_told_before_any_job(settings, overrides, message):
    with pytest.raises(UserError, match=message):
        settings(*overrides)


def test_without_a_name_it_lists_the_tables():
    with pytest.raises(UserError, match=r"table=NAME has to be given\. Tables: .*reconstruction"):
        verb.check(config.plain(config.compose("table")))


def test_equal_settings_share_a_run_and_others_do_not(settings):
    first = settings("rows=['1e-2']")
    again = settings("rows=['1e-2']", "overrides=data.num_workers=3 eval.reconstructions=2 logger=none")
    longer = settings("rows=['1e-2']", "overrides=trainer.max_steps=7")
    other = settings("rows=['entropy, 2 layers']", "overrides=loss.lambda_attn=0.01", table="ablation")
    of = [verb.table_run(s, verb.rows_of(s)[0], 0) for s in (first, again, longer, other)]
    assert of[0].task.folder == of[1].task.folder == of[3].task.folder != of[2].task.folder
    assert of[0].scoring == of[3].scoring != of[1].scoring
    assert verb.table_run(first, "1e-2", 1).task.folder != of[0].task.folder
    assert of[0].task.folder.name.startswith("partcraft-seed0-")


def test_new_networks_make_new_runs(settings, monkeypatch):
    before = verb.table_run(settings("rows=['0']"), "0", 0)
    monkeypatch.setattr(verb, "_content_hash", lambda path: "new weights")
    assert verb.table_run(settings("rows=['0']"), "0", 0).digest != before.digest


# Whole tables, with a stand-in for the training command.

ROWS = "rows=['0','1e-4','1e-2']"
SMALL = (ROWS, "table.seeds=[0,1]", "resamples=100", "logger=none")


class Trainer:
    """Does what the commands of a run do: the folder with its configuration, images and scores."""

    def __init__(self):
        self.trained = []
        self.failing = set()

    def __call__(self, tasks, where=None, log=print, ledger=None):
        errors = {}
        for task in tasks:
            if task.is_done():
                continue
            if task.name in self.failing:
                errors[task.name] = "partcraft: it broke.\nsecond line"
                continue
            self.trained.append(task.name)
            _, train, *overrides = task.steps[0].command[2:]
            assert train == "train"
            self._write(task.folder, overrides, row=task.name.split(",")[0])
        return Outcome(errors)

    def _write(self, folder, overrides, row):
        from omegaconf import OmegaConf

        strength = float(row)
        (folder / ".hydra").mkdir(parents=True, exist_ok=True)
        given = [text for text in overrides if not text.startswith("hydra.")]
        values = verb._composed(tuple(given), f"table.rows.{row}")  # composed already
        OmegaConf.save(OmegaConf.create(values), folder / ".hydra" / "config.yaml")
        rows = []
        for protocol in ("reconstruction", "2 species", "3 species", "4 species"):
            for index in range(6):
                image = folder / "evaluation" / f"{protocol}-{index}.png"
                image.parent.mkdir(exist_ok=True)
                image.touch()
                score = min(1.0, 0.3 + 40 * strength + 0.02 * index)
                facts = {"protocol": protocol, "index": index, "seed": 1, "prompt": "a bird", "image": image.name}
                rows.append({**facts, "emr/all": score, "cosim/all": score / 2, "part_accuracy/all": float("nan")})
        write_rows(folder / "evaluation" / "scores.csv", rows)
        numbers = {f"pictures/fid@mini@{name}": 0.1 - strength for name in ("reconstruction", "2_species")}
        numbers |= {f"pictures/kid@mini@{name}": (1 - strength) / 1000 for name in ("reconstruction", "2_species")}
        (folder / "scores.json").write_text(json.dumps(numbers))
        (folder / "costs.json").write_text('{"trainable_parameters": 1234, "train_seconds": 90.0}')
        rundir.mark_finished(folder)


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr(run_table, "run_tasks", made)
    return made


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def started(*overrides):
        with pytest.raises(SystemExit) as ended:
            cli.main(["table", "table=lambda_attn", f"paths.logs={tmp_path}/logs", *SMALL, *overrides])
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    return started


def summary(folder):
    with (folder / "summary.csv").open(newline="") as file:
        return {(line["row"], line["column"]): line for line in csv.DictReader(file)}


def test_a_table_is_made_and_made_again_without_training(start, trainer, tmp_path):
    code, said = start()
    assert code == 0, said
    folder = tmp_path / "experiments" / "lambda_attn"
    text = (folder / "table.md").read_text()
    assert "| 0.750 ≈ [" in text and "0.460" in text and "1,234 | 90 s" in text
    protocol = json.loads((folder / "protocol.json").read_text())
    assert f"`{protocol['hash']}`" in text and len(protocol["runs"]) == 6
    cells = summary(folder)
    assert float(cells["0", "EMR"]["mean"]) == pytest.approx(0.35) and cells["1e-2", "EMR"]["best"] == "True"
    assert cells["0", "part accuracy, hybrids"]["mean"] == "" and cells["0", "EMR"]["images"] == "6"
    with (folder / "results.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 3 * 2 * 24
    assert r"0.750$^{\approx}$" in (folder / "table.tex").read_text()
    assert read_image(folder / "figure.png").shape[2] >= 1200
    before = (folder / "summary.csv").read_bytes()
    assert start()[0] == 0
    assert len(trainer.trained) == 6 and (folder / "summary.csv").read_bytes() == before


def test_distances_of_whole_images_name_their_protocol_and_how_far_they_are_known(start, trainer, tmp_path):
    assert start()[0] == 0
    text = (tmp_path / "experiments" / "lambda_attn" / "table.md").read_text()
    parts, images = text.split("## Parts")[1].split("## Whole images")
    assert "| FID ↓ fid@mini | FID, paper | KID × 1000 ↓ kid@mini | parameters | training |" in images
    assert "| 1e-2 | 0.090 ≈ [0.090, 0.090] | 12.9 | 0.990 ≈ [0.990, 0.990] | 1,234 | 90 s |" in images
    assert "FID" not in parts and "n = seeds × images: 2 × 6, 2 × 18" in images
    assert "FID, KID × 1000: one value for each seed, so the interval is over 2 seeds alone" in images
    assert "in 50% of cases; FID and KID are of 6 images." in images and images.count("Below 5,000 images") == 1
    cells = summary(tmp_path / "experiments" / "lambda_attn")
    cell = cells["0", "KID × 1000 (kid@mini)"]
    assert float(cell["p_value"]) == 0.5 and float(cell["p_corrected"]) == 1 and cell["distinct"] == "False"


def test_networks_that_have_not_seen_the_images_are_missing_work(settings, trainer):
    one = verb.table_run(settings("rows=['0']"), "0", 0)
    trainer([one.task])
    given = "overrides=eval.pictures=[mini,clip_base32] metrics.clip_base32.source=/models/clip"
    two = verb.table_run(settings("rows=['0']", given), "0", 0)
    assert two.task.folder == one.task.folder and one.task.is_done() and not two.task.is_done()
    command = two.task.steps[1].command
    values = config.plain(config.compose("evaluate", list(command[4:])))
    assert values["metrics"]["clip_base32"]["source"] == "/models/clip"
    write_networks(two.evaluation(), ["mini", "clip_base32"])
    assert two.task.is_done() and one.task.is_done()


def test_a_finished_table_goes_to_the_loggers(start, trainer, tmp_path):
    code, said = start("logger=csv", "table.seeds=[0]")
    assert code == 0, said
    protocol = (tmp_path / "experiments" / "lambda_attn" / "csv" / "version_0" / "hparams.yaml").read_text()
    assert "question: How does the weight" in protocol


def test_what_failed_is_listed_and_only_that_is_tried_again(start, trainer, tmp_path):
    trainer.failing = {"1e-4, seed 1"}
    code, said = start()
    assert code == 2 and "1 runs of the table are missing" in said and "it broke" in said
    folder = tmp_path / "experiments" / "lambda_attn"
    assert "MISSING 1e-4, seed 1: partcraft: it broke." in (folder / "table.md").read_text()
    assert summary(folder)["1e-4", "EMR"]["seeds"] == "1"
    trainer.failing = set()
    assert start()[0] == 0
    assert trainer.trained.count("1e-4, seed 1") == 1 and len(trainer.trained) == 6
    assert "MISSING" not in (folder / "table.md").read_text()


def test_images_that_were_deleted_are_missing_work(start, trainer, tmp_path):
    assert start()[0] == 0
    run = sorted((tmp_path / "logs" / "table" / "runs").iterdir())[0]
    next((run / "evaluation").glob("*.png")).unlink()
    code, said = start("verify=true")
    assert code == 2 and "its images are gone" in said
    trainer.failing = set()
    assert start()[0] == 0 and len(trainer.trained) == 7


def test_verifying_compares_the_table_with_the_images(start, trainer, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "_verify", lambda values, folder, scored: 24)
    assert start()[0] == 0
    code, said = start("verify=true")
    assert code == 0 and "144 images were read again" in said
    path = tmp_path / "experiments" / "lambda_attn" / "summary.csv"
    path.write_text(path.read_text().replace("0.75,", "0.76,", 1))
    code, said = start("verify=true")
    assert code == 2 and "is not what the scores of the images give" in said
    assert len(trainer.trained) == 6


def test_a_run_that_is_gone_is_trained_again(start, trainer, tmp_path):
    assert start()[0] == 0
    runs = sorted((tmp_path / "logs" / "table" / "runs").iterdir())
    assert len(runs) == 6
    shutil.rmtree(runs[3])
    assert start()[0] == 0 and len(trainer.trained) == 7


def test_scores_of_other_settings_stand_beside_those_of_the_run(settings, trainer):
    first, other = settings("rows=['0']"), settings("rows=['0']", "overrides=eval.species=[1,2]")
    one, two = (verb.table_run(s, "0", 0) for s in (first, other))
    trainer([one.task])
    assert one.evaluation() == one.task.folder / "evaluation" and one.task.is_done()
    assert two.evaluation().parent == one.evaluation() and not two.task.is_done() and two.task.steps[0].is_done()
    command = two.task.steps[1].command
    values = config.plain(config.compose("evaluate", list(command[4:])))
    assert evaluate.evaluation_folder(one.task.folder, values) == two.evaluation()


@pytest.mark.slow
def test_a_whole_table_with_real_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny = (
        "trainer.max_steps=2 eval.reconstructions=2 eval.compositions=1 eval.species=[2,3,4] sample.steps=1 parts.K=3 "
        "dataset.species=5 dataset.images_per_species=2 parts.nredo=1 eval.hybrids=1"
    )
    given = ["table", "table=lambda_attn", "rows=['0','1e-2']", "table.seeds=[0]", f"overrides={tiny}", "jobs=2"]
    given += [f"paths.logs={tmp_path}/logs", f"paths.store={tmp_path}/store", "resamples=100", "logger=none"]
    for more in ([], [], ["verify=true"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*given, *more])
        assert ended.value.code == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "Verified: 10 images were read again" in said and said.count("done in") == 2
    assert "2 steps of 16 images" in (tmp_path / "experiments" / "lambda_attn" / "table.md").read_text()


def test_jobs_at_a_cluster_that_are_not_waited_for(start, trainer, tmp_path, monkeypatch):
    """The command returns without a table; once the jobs are done, the same command writes it."""
    pending = Outcome(pending={"0, seed 0": "17_0"})
    monkeypatch.setattr(verb, "check_slurm", lambda: None)
    monkeypatch.setattr(run_table, "run_tasks", lambda tasks, where, log, ledger: pending)
    given = ("launcher=slurm", "slurm.partition=gpu", "slurm.wait=false")
    assert start(*given)[0] == 0
    assert not (tmp_path / "experiments" / "lambda_attn" / "table.md").exists()
    wheres = []
    monkeypatch.setattr(run_table, "run_tasks", lambda tasks, where, *more: wheres.append(where) or trainer(tasks))
    assert start(*given)[0] == 0
    assert (tmp_path / "experiments" / "lambda_attn" / "table.md").exists()
    assert wheres[0].partition == "gpu" and wheres[0].wait is False
