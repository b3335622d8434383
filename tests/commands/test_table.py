"""The verb ``table``: what it plans, trains, finds, writes and verifies."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from partcraft_lit import cli
from partcraft_lit.commands import evaluate
from partcraft_lit.commands import table as verb
from partcraft_lit.commands.table import studies, tuning
from partcraft_lit.commands.table import table as run_table
from partcraft_lit.config import cmdline, sources
from partcraft_lit.config import compose as config
from partcraft_lit.core import rundir
from partcraft_lit.core.environment import Checkout
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image
from partcraft_lit.evaluation.image_scores import write_networks, write_rows
from partcraft_lit.scheduling.tasks import Outcome
from partcraft_lit.search.storage import open_storage

ROOT = Path(__file__).resolve().parents[2]
TABLES = sorted(path.stem for path in (sources.conf_dir() / "table").glob("*.yaml"))
METHODS = {path.stem for path in (sources.conf_dir() / "method").glob("*.yaml")}


def scales_of(table: str) -> list[str]:
    text = (sources.conf_dir() / "table" / f"{table}.yaml").read_text(encoding="utf-8")
    return list(yaml.safe_load(text)["scales"])


@pytest.fixture
def settings(tmp_path):
    def made(*overrides, table="lambda_attn"):
        given = [f"table={table}", f"paths.logs={tmp_path}/logs", f"paths.store={tmp_path}/store", *overrides]
        written = [cmdline.as_written(text, multirun=False) for text in given]
        renamed = [cmdline.renamed(text, "table") for text in written]
        return verb.check(config.plain(config.compose("table", renamed)))

    return made


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scale"), [(name, scale) for name in TABLES for scale in scales_of(name)])
def test_every_row_of_every_table_composes(name, scale, settings):
    values = config.plain(config.compose("table", [f"table={name}", f"scale={scale}"]))
    rows = values["table"]["rows"]
    searched = [] if values["table"].get("tuning") is None else ["tune=true"]  # its rows need studies, trials do not
    known = [row for row in rows if not _methods_of(rows[row]) - METHODS]
    for row in rows.keys() - known:
        with pytest.raises(UserError, match=rf"table\.rows\.{row}: method="):
            settings(f'rows=["{row}"]', f"scale={scale}", *searched, table=name)
    chosen = ",".join(f'"{row}"' for row in known)
    planned = settings(f"rows=[{chosen}]", f"scale={scale}", *searched, table=name)
    assert verb.rows_of(planned) == known


def _methods_of(row):
    given = [*row.get("overrides", []), *row.get("small", []), *row.get("paper", [])]
    return {text.partition("=")[2] for text in given if text.startswith("method=")}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rows=['1e-22']"], r"'1e-22' is not a row of table=lambda_attn\. Did you mean '1e-2'"),
        (["rows=['0']", "overrides=method=partcaft"], r"table\.rows\.0: method=partcaft: no such option\. Did you"),
        (["rows=['0']", "overrides=lora.rnk=3"], r"table\.rows\.0: Unknown key 'lora\.rnk'"),
        (["rows=['0']", "table.figure.panels=[EMRR]"], r"'EMRR' is none\. Did you mean 'EMR'"),
        (["+table.rows.0.reported.FIT=1"], r"table\.rows\.0\.reported\.FIT: no such column"),
        (["table.seeds=[]"], r"at least one seed"),
        (["scale=large"], r"scale='large': wanted one of small, paper"),
        (["jobs=0"], r"jobs=0"),
        (["~table.rows.0", "rows=['0']"], r"'0' is not a row"),
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


def test_another_discovery_makes_new_runs(settings, monkeypatch):
    before = verb.table_run(settings("rows=['0']"), "0", 0)
    monkeypatch.setattr(verb, "DISCOVERY_REVISION", verb.DISCOVERY_REVISION + 1)
    assert verb.table_run(settings("rows=['0']"), "0", 0).digest != before.digest


# Whole tables, with a stand-in for the training command.

ROWS = "rows=['0','1e-4','1e-2']"
SMALL = (ROWS, "table.seeds=[0,1]", "resamples=100", "logger=none", "allow_dirty=true")


class Trainer:
    """Does what the commands of a run do: the folder with its configuration, images and scores."""

    def __init__(self):
        self.trained = []
        self.failing = set()
        self.noise = 0.0  # of the scores, by seed

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
        seed = next(int(text.partition("=")[2]) for text in overrides if text.startswith("seed="))
        shift = self.noise * random.Random(f"{row} {seed}").random()
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
                score = min(1.0, 0.3 + 40 * strength + 0.02 * index - shift)
                facts = {"protocol": protocol, "index": index, "seed": 1, "prompt": "a bird", "image": image.name}
                rows.append({**facts, "emr/all": score, "cosim/all": score / 2, "part_accuracy/all": float("nan")})
        write_rows(folder / "evaluation" / "scores.csv", rows)
        numbers = {f"pictures/fid@mini@{name}": 0.1 - strength + shift for name in ("reconstruction", "2_species")}
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


def reread():
    """The tool, which shares no code with the package."""
    path = Path(__file__).parents[2] / "tools" / "reread_tables.py"
    spec = importlib.util.spec_from_file_location("reread_tables", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


def test_an_independent_reading_gets_the_same_numbers(start, trainer, tmp_path, capsys):
    pytest.importorskip("pandas")
    trainer.noise = 0.05
    assert start("table.seeds=[0,1,2,3]", "resamples=2000")[0] == 0
    folder, tool = tmp_path / "experiments" / "lambda_attn", reread()
    same, wrong, skipped = tool.reread(folder)
    assert (wrong, skipped) == ([], []) and same > 3 * 5 * 4
    assert tool.main([str(folder)]) == 0 and f"{same} numbers are the same" in capsys.readouterr().out
    path = folder / "summary.csv"
    lines = path.read_text().splitlines()
    cells = lines[1].split(",")
    cells[2] = str(float(cells[2]) + 0.01)
    path.write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]))
    assert tool.main([str(folder)]) == 1 and "0, EMR, mean" in capsys.readouterr().out
    (folder / "runs.csv").unlink()
    assert "no runs.csv" in tool.reread(folder)[2][0]


def test_uncommitted_code_starts_no_table_unless_that_is_wanted(start, trainer, tmp_path, monkeypatch):
    changed = tuple(f"src/partcraft_lit/{name}.py" for name in "abcdefg")
    monkeypatch.setattr(verb.environment, "checkout", lambda *given: Checkout("c" * 40, changed))
    code, said = start("allow_dirty=false")
    assert code == 2 and "a.py" in said and "and 2 more" in said and "allow_dirty=true" in said
    assert not trainer.trained
    assert start()[0] == 0
    protocol = json.loads((tmp_path / "experiments" / "lambda_attn" / "protocol.json").read_text())
    assert protocol["code"]["commit"] == "c" * 40 and len(protocol["code"]["changed"]) == 7
    text = (tmp_path / "experiments" / "lambda_attn" / "table.md").read_text()
    assert "changes that were not committed: src/partcraft_lit/a.py, " in text
    monkeypatch.setattr(verb.environment, "checkout", lambda *given: Checkout("d" * 40, ()))
    assert start("allow_dirty=false")[0] == 0
    monkeypatch.setattr(verb.environment, "checkout", lambda *given: None)  # an installed package
    assert start("allow_dirty=false")[0] == 0
    code = json.loads((tmp_path / "experiments" / "lambda_attn" / "protocol.json").read_text())["code"]
    assert code["version"] and "commit" not in code


def test_the_protocol_stands_before_the_first_run(start, tmp_path, monkeypatch):
    path = tmp_path / "experiments" / "lambda_attn" / "protocol.json"
    seen = []

    def run_tasks(tasks, *more):
        seen.append(json.loads(path.read_text())["hash"])
        return Outcome(pending={"0, seed 0": "1"})

    monkeypatch.setattr(run_table, "run_tasks", run_tasks)
    assert start()[0] == 0 and len(seen) == 1


def test_the_primary_column_is_named_everywhere(start, trainer, tmp_path):
    assert start("+table.columns.EMR.primary=true")[0] == 0
    folder = tmp_path / "experiments" / "lambda_attn"
    assert json.loads((folder / "protocol.json").read_text())["primary"] == "EMR"
    roles = {column: line["role"] for (_, column), line in summary(folder).items()}
    assert roles.pop("EMR") == "primary" and set(roles.values()) == {"secondary"}
    text = (folder / "table.md").read_text()
    assert "EMR (primary)" in text and "- Primary: EMR. All other columns are secondary." in text
    code, said = start("+table.columns.EMR.primary=true", "+table.columns.CoSim.primary=true")
    assert code == 2 and "one column may be primary, not 2: EMR, CoSim" in said


def test_values_of_whole_runs_are_written_beside_those_of_images(start, trainer, tmp_path):
    assert start()[0] == 0
    with (tmp_path / "experiments" / "lambda_attn" / "runs.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * 2 * 2 and {line["column"] for line in lines} == {"FID (fid@mini)", "KID × 1000 (kid@mini)"}
    assert next(line["value"] for line in lines if line["row"] == "1e-2" and line["column"].startswith("KID")) == "0.99"


def test_another_base_has_a_folder_and_runs_of_its_own(settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plain, usual = settings("rows=['0']", "backbone=mini_plain"), settings("rows=['0']")
    assert plain.folder == usual.folder / "mini_plain"
    assert verb.run_values(plain, "0", 0)["backbone"]["packaged"] == "mini_plain"
    assert verb.table_run(plain, "0", 0).digest != verb.table_run(usual, "0", 0).digest
    both = settings("+table.rows.x={overrides: ['backbone=mini']}", "rows=[x,'0']", "backbone=mini_plain")
    assert [verb.run_values(both, row, 0)["backbone"].get("packaged") for row in ("x", "0")] == [None, "mini_plain"]
    with pytest.raises(UserError, match=r"backbone=mini_plane.*no such option"):
        settings("rows=['0']", "backbone=mini_plane")


# Searches of rows, with a stand-in for the command.

SEARCHED = "rows=[partcraft,dreambooth]"
TRIALS = "table.tuning.trials=3"


class Searcher:
    """Does what a search does: a study with a value for each trial."""

    def __init__(self):
        self.started = []
        self.trials = 3

    def __call__(self, tasks, where=None, log=print, ledger=None):
        optuna = pytest.importorskip("optuna")
        for task in tasks:
            if task.is_done():
                continue
            self.started.append(task.name)
            task.folder.mkdir(parents=True, exist_ok=True)
            storage = open_storage(str(task.folder / "search.journal"))
            study = optuna.create_study(storage=storage, study_name="search", direction="minimize", load_if_exists=True)
            for number in range(len(study.trials), self.trials):
                trial = study.ask()
                rate = trial.suggest_float("optim.mapper_lr", 2e-3, 5e-2, log=True)
                trial.set_user_attr("worker", str(task.folder / ".workers" / "1"))
                study.tell(trial, 0.5 - 0.1 * number if number < 2 else float("nan") if rate < 0 else 0.9)
        return Outcome()


@pytest.fixture
def searcher(monkeypatch):
    made = Searcher()
    monkeypatch.setattr(tuning, "run_tasks", made)
    return made


def test_a_kept_study_names_no_folder_of_this_machine(tmp_path):
    folder = tmp_path / "arena-only_λ"  # which JSON writes as \\u03bb
    Searcher()([SimpleNamespace(name="only λ", folder=folder, is_done=lambda: False)])
    terms = SimpleNamespace(objective="error", direction="minimize", trials=3, seed=0)
    studies.keep(folder, tmp_path / "table", "only λ", terms, {})
    kept = studies.study_folder(tmp_path / "table", "only λ") / "search.journal"
    assert str(tmp_path) in (folder / "search.journal").read_text(encoding="utf-8")
    assert str(tmp_path) not in kept.read_text(encoding="utf-8")


def test_rows_take_what_their_searches_chose(settings, searcher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"'partcraft' takes its settings from a search.*tune=true"):
        settings(SEARCHED, TRIALS, table="arena")
    tuned = settings(SEARCHED, TRIALS, "tune=true", table="arena")
    searches = [verb.row_search(tuned, row) for row in ("partcraft", "dreambooth")]
    command = searches[1].task.steps[0].command[3:]
    assert {"train", "-m", "hydra.sweeper.n_trials=3", "dataset.species_split=dev", "seed=1000"} <= set(command)
    assert "optim.mapper_lr=tag(log,interval(2e-3,5e-2))" in command
    searcher.trials = 2  # stopped before the last one
    assert not tuning.search_rows(tuned, searches)
    searcher.trials = 3
    chosen = tuning.search_rows(tuned, searches)
    assert [one.task.is_done() for one in searches] == [True, True] and len(searcher.started) == 4
    assert chosen["dreambooth"].trial == 1 and chosen["dreambooth"].value == pytest.approx(0.4)
    folder = tmp_path / "experiments" / "arena" / "studies" / "dreambooth"
    written = yaml.safe_load((folder / "chosen.yaml").read_text())
    assert str(tmp_path) not in (folder / "search.journal").read_text()
    planned = settings(SEARCHED, TRIALS, table="arena")
    values = verb.run_values(planned, "dreambooth", 3)
    assert values["optim"]["mapper_lr"] == written["overrides"]["optim.mapper_lr"]
    assert values["dataset"]["species_split"] == "test" and values["dataset"]["seed"] == 3
    runs = [verb.table_run(planned, row, 0) for row in ("partcraft", "dreambooth")]
    decided = run_table.write_protocol(planned, planned.folder, runs)
    assert decided["studies"]["dreambooth"]["journal"] == written["journal"]
    assert decided["primary"] == "excess error, 4 species"
    assert {run.budget for run in runs} == {"200 steps of 16 images"}
    assert not run_table._study_differences(planned, planned.folder, runs)
    assert not run_table._protocol_differences(planned, planned.folder, runs)
    untouched = (folder / "chosen.yaml").read_text()
    (folder / "chosen.yaml").write_text(untouched.replace("trial: 1", "trial: 0"))
    planned = settings(SEARCHED, TRIALS, table="arena")
    runs = [verb.table_run(planned, row, 0) for row in ("partcraft", "dreambooth")]
    assert "is not what its study says: trial 1" in run_table._study_differences(planned, planned.folder, runs)[0]
    assert "is of other settings" in run_table._protocol_differences(planned, planned.folder, runs)[0]
    with pytest.raises(
        UserError, match=r"is of another search than the table asks for now: search\.trials was 3, is 4"
    ):
        settings(SEARCHED, "table.tuning.trials=4", table="arena")
    with pytest.raises(UserError, match=r"trainer\.max_steps was 200, is 7"):
        settings(SEARCHED, TRIALS, "overrides=trainer.max_steps=7", table="arena")
    (folder / "chosen.yaml").write_text(untouched)
    listed = folder / "settings.json"
    kept = listed.read_text()
    listed.write_text(kept.replace('"seed": 1000', '"seed": 1001'))
    with pytest.raises(UserError, match=r"settings\.json is not that of chosen\.yaml"):
        settings(SEARCHED, TRIALS, table="arena")
    listed.write_text(kept)
    more = verb.row_search(settings(SEARCHED, "table.tuning.trials=4", "tune=true", table="arena"), "dreambooth")
    assert more.task.folder == searches[1].task.folder and not more.task.is_done()  # the study goes on
    shutil.rmtree(searches[1].task.folder)
    again = verb.row_search(tuned, "dreambooth")
    assert again.task.is_done() and tuning.search_rows(tuned, [again])["dreambooth"] == chosen["dreambooth"]


def test_keys_that_are_younger_than_a_study_leave_it_valid():
    searched = {"loss": {"lambda_attn": 0.1}, "seed": 1000}
    assert not list(studies._differences(searched, {"loss": {"lambda_attn": 0.1, "new": 0}, "seed": 1000, "more": 1}))
    assert list(studies._differences(searched, {"loss": {}, "seed": 1})) == [
        "loss.lambda_attn was 0.1, is None",
        "seed was 1000, is 1",
    ]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["table.tuning.seed=4"], r"table\.tuning\.seed=4 is one of table\.seeds"),
        (
            ["++table.rows.dreambooth.search={optim.mapper_rate: '1,2'}"],
            r"table\.rows\.dreambooth\.search: .*mapper_rate",
        ),
        (
            ["rows=[dreambooth,partcraft]", "++table.rows.partcraft.overrides=['data.batch_size=8']"],
            r"1,600 images .* and 3,200",
        ),
        (["table.tuning.objective=trth/x"], r"objective=trth/x: no score has this name"),
    ],
)
def test_searches_that_cannot_be_are_told_before_any_trial(settings, overrides, message):
    with pytest.raises(UserError, match=message):
        settings("rows=[dreambooth]", "tune=true", *overrides, table="arena")


def test_a_table_without_searches_has_nothing_to_tune(settings):
    with pytest.raises(UserError, match=r"tune=true, and table=lambda_attn says nothing of searches"):
        settings("rows=['0']", "tune=true")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "data.batch_size=16",
            r"3,200 images through the denoiser in the row 'a' and 6,400 in 'b', prior images incl",
        ),
        ("sample.steps=9", r"'a' and 'b' of table=lambda_attn differ in sample"),
    ],
)
def test_equal_terms_are_checked_before_any_run(settings, override, message):
    other = f"'experiment=arena_test','method=dreambooth','data.batch_size=8','{override}'"
    rows = ("+table.rows.a={overrides: ['experiment=arena_test']}", f"+table.rows.b={{overrides: [{other}]}}")
    given = ("rows=[a,b]", "table.scales={small: []}", "+table.equal_terms=true")
    with pytest.raises(UserError, match=message):
        settings(*rows, *given)


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
    given += ["allow_dirty=true"]
    for more in ([], [], ["verify=true"]):
        with pytest.raises(SystemExit) as ended:
            cli.main([*given, *more])
        assert ended.value.code == 0, capsys.readouterr()
    said = capsys.readouterr().out
    assert "Verified: 10 images were read again" in said and said.count("done in") == 2
    assert "2 steps of 16 images" in (tmp_path / "experiments" / "lambda_attn" / "table.md").read_text()
    pictures = runpy.run_path(str(ROOT / "tools" / "table_pictures.py"))["main"]
    pictures(["experiments/lambda_attn", "--protocols", "2 species"])
    both = read_image(tmp_path / "experiments" / "lambda_attn" / "pictures.png").shape[1]
    pictures(["experiments/lambda_attn", "--protocols", "2 species", "--rows", "0", "--out", "one.png"])
    assert both > read_image(tmp_path / "one.png").shape[1] > 2 * 144  # the row, and the true drawing above it


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
