"""Searches from the command line; what a trial trains is made up."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from partcraft_lit import cli
from partcraft_lit.config import launchers
from partcraft_lit.core.stopping import SCHEDULED_VARIABLE, TIME_LIMIT_CODE, TimeLimitReached

SMALL = ("dataset.images_per_species=1", "logger=csv", "trainer=cpu", "hydra/launcher=basic")
SEARCH = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "loss.lambda_attn=tag(log,interval(1e-4,1))")
EMR, COSIM = "eval/emr@4_species", "eval/cosim@4_species"


@pytest.fixture
def trained(monkeypatch):
    """Settings of the trials, in their order; ``scores`` says what each is worth, or raises."""
    state = SimpleNamespace(calls=[], folders=[], scores=lambda settings: {EMR: settings.loss.lambda_attn, COSIM: 0.5})

    def train(settings, folder, **others):
        state.calls.append(settings)
        state.folders.append(folder)
        state.callbacks = others["training"].callbacks
        return state.scores(settings)

    module = ModuleType("partcraft_lit.commands.train.train")
    module.train = train
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return state


@pytest.fixture
def start(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def started(*arguments):
        launcher = () if any("hydra/launcher" in text for text in arguments) else SMALL[-1:]
        with pytest.raises(SystemExit) as ended:
            cli.main(["train", *arguments, *SMALL[:-1], *launcher, f"paths.store={tmp_path / 'store'}"])
        out = capsys.readouterr()
        return SimpleNamespace(code=ended.value.code, out=out.out, err=out.err)

    return started


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "search.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_search_finds_the_best_and_the_same_command_has_nothing_left_to_do(start, trained):
    result = start(*SEARCH, f"objective={EMR}", "lora.rank=2,4")
    assert result.code == 0, result.err
    values = [call.loss.lambda_attn for call in trained.calls]
    assert len(set(values)) == 3 and all(1e-4 <= value <= 1 for value in values)
    assert {call.lora.rank for call in trained.calls} <= {2, 4}
    folder = trained.folders[0].parent
    assert [path.name for path in trained.folders] == ["trial_000", "trial_001", "trial_002"]
    rows = table(folder)
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert float(rows[0][EMR]) == pytest.approx(max(values), rel=1e-5)
    assert f"Best: trial {values.index(max(values))}, {EMR}=" in result.out
    assert (folder / "search.md").is_file() and (folder / "multirun.yaml").is_file()
    again = start(*SEARCH, f"objective={EMR}", "lora.rank=2,4")
    assert (
        again.code == 0
        and len(trained.calls) == 3
        and f"Continuing the search in {folder.relative_to(Path.cwd())}" in again.out
    )
    more = [text.replace("n_trials=3", "n_trials=4") for text in SEARCH]
    start(*more, f"objective={EMR}", "lora.rank=2,4")
    assert len(trained.calls) == 4 and trained.folders[-1] == folder / "trial_003"


def test_the_folder_of_a_search_may_be_named(start, trained):
    for trials in (1, 2):
        result = start(*SEARCH, f"objective={EMR}", "hydra.sweep.dir=mine", f"hydra.sweeper.n_trials={trials}")
        assert result.code == 0, result.err
    assert [folder.relative_to(Path.cwd()).as_posix() for folder in trained.folders] == [
        "mine/trial_000",
        "mine/trial_001",
    ]


def test_an_interrupted_search_goes_on_with_the_trial_that_it_was_at(start, trained):
    def stop(settings):
        raise KeyboardInterrupt

    trained.scores, scores = stop, trained.scores
    assert start(*SEARCH, f"objective={EMR}").code == 130
    trained.scores = scores
    assert start(*SEARCH, f"objective={EMR}").code == 0
    first, again = trained.calls[:2]
    assert len(trained.calls) == 4 and first.loss == again.loss and trained.folders[0] == trained.folders[1]


def test_a_trial_that_was_finished_but_not_told_is_not_run_again(start, trained, monkeypatch):
    from partcraft_lit.search.study import Search

    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Search, "tell", killed)
        assert start(*SEARCH, f"objective={EMR}").code == 130
    assert start(*SEARCH, f"objective={EMR}").code == 0 and len(trained.calls) == 3


def test_errors_and_scores_that_are_no_numbers_are_no_results(start, trained):
    def scores(settings):
        if len(trained.calls) == 1:
            raise RuntimeError("out of luck")
        return {EMR: float("nan") if len(trained.calls) == 2 else 0.25}

    trained.scores = scores
    result = start(*SEARCH, f"objective={EMR}", "hydra.sweeper.direction=minimize", "objective_if_nan=-1e6")
    assert result.code != 0 and "With an error: trial_000" in result.out
    rows = table(trained.folders[0].parent)
    assert [(row["trial"], row["state"], row["note"]) for row in rows] == [
        ("2", "complete", ""), ("0", "failed", "error"), ("1", "failed", "not finite: nan"),
    ]  # fmt: skip
    again = start(*SEARCH, f"objective={EMR}", "hydra.sweeper.direction=minimize", "objective_if_nan=-1e6")
    assert again.code == 0 and len(trained.calls) == 4 and trained.calls[3].loss == trained.calls[0].loss


def test_a_trial_that_reached_its_time_limit_goes_on_by_the_same_command(start, trained):
    def limited(settings):
        if len(trained.calls) == 1:
            raise TimeLimitReached("at step 3 of 6")
        return {EMR: 0.25}

    trained.scores = limited
    search = (*SEARCH, f"objective={EMR}", "hydra.sweeper.n_trials=1", "hydra.sweeper.sampler=random")
    result = start(*search, "trainer.max_time=00:00:01:00")
    assert result.code == 0, result.err
    assert "Ended at trainer.max_time, with a checkpoint: trial_000. The same command continues them." in result.out
    assert "error" not in result.out
    assert [row["state"] for row in table(trained.folders[0].parent)] == ["stopped"]
    again = start(*search, "trainer.max_time=00:01:00:00")  # which does not decide what is found
    assert again.code == 0 and trained.folders[1:] == trained.folders[:1]
    assert trained.calls[0].loss == trained.calls[1].loss
    assert [row["state"] for row in table(trained.folders[0].parent)] == ["complete"]


#: A job of a pool: the first start of the first trial ends at its time limit.
JOB = """
import json, os, pathlib, sys
given = {key: value.strip("'") for key, _, value in (text.partition("=") for text in sys.argv[1:])}
folder = pathlib.Path(given["hydra.run.dir"])
if folder.name == "trial_000" and not (folder / "begun").exists():
    (folder / "begun").touch()
    print("partcraft: stopped by trainer.max_time at step 3 of 6."); sys.exit(75)
(folder / "finished.json").write_text(json.dumps({"objective": {given["objective"]: 0.5}}))
result = {"key": os.environ["PARTCRAFT_LIT_JOB"], "objective": given["objective"], "value": 0.5}
(folder / "job_result.json").write_text(json.dumps(result))
"""


def test_so_does_one_that_a_launcher_of_ours_started(start, monkeypatch):
    monkeypatch.setattr(launchers, "python_command", lambda *given: (sys.executable, "-S", "-c", JOB, *given))
    command = (*SEARCH, f"objective={EMR}", "hydra/launcher=pool", "hydra.sweep.dir=mine")
    with monkeypatch.context() as scheduled:
        scheduled.setenv(SCHEDULED_VARIABLE, "1")  # as of a table that searches the settings of its rows
        result = start(*command)
    assert result.code == TIME_LIMIT_CODE, result.err
    assert "STOPPED" in result.out and "trial_000. The same command continues them." in result.out
    again = start(*command)
    assert again.code == 0 and "STOPPED" not in again.out
    assert {row["state"] for row in table(Path("mine"))} == {"complete"}


def test_several_objectives_choices_ranges_and_groups(start, trained):
    result = start(
        *SEARCH, f"objective=[{EMR},{COSIM}]", "hydra.sweeper.direction=[maximize,minimize]", "method=glob(d*)",
        "hydra.sweeper.sampler=nsgaii", "parts.K=range(3,9,2)", "lora.rank=int(interval(2,5))", "prior.weight=0,0.5",
        "+hydra.sweeper.params={seed: '1,2'}", "hydra.sweeper.n_jobs=2",
    )  # fmt: skip
    assert result.code == 0, result.err
    for call in trained.calls:
        assert call.parts.K in (3, 5, 7) and call.lora.rank in (2, 3, 4, 5) and call.seed in (1, 2)
    assert {"method", "seed", EMR, COSIM} <= table(trained.folders[0].parent)[0].keys()


def test_a_pruner_gives_every_trial_a_line_to_the_study(start, trained):
    from partcraft_lit.callbacks.pruning import Pruning

    result = start(*SEARCH, f"objective={EMR}", "callbacks=live", "hydra.sweeper.pruner=median")
    assert result.code == 0, result.err
    (pruning,) = [one for one in trained.callbacks if isinstance(one, Pruning)]
    assert pruning.number == 2 and Path(pruning.storage) == trained.folders[0].parent / "search.journal"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-m", "loss.lambda_attn=interval(0,1)"), "A search over it is hydra/sweeper=optuna"),
        (("-m", "hydra/sweeper=optuna", "lora.rank=2,4"), "A search needs an objective, a key of scores.json"),
        ((*SEARCH, "objective=eval/emr@5_species"), f"Did you mean '{EMR}'"),
        ((*SEARCH, f"objective=[{EMR},eval/fid@x]"), "objective=eval/fid@x: this run has no such score"),
        (("-m", "hydra/sweeper=optuna", f"objective={EMR}"), "A search needs something to search"),
        ((*SEARCH, f"objective={EMR}", "lora.rank=interval(5,2)"), "wanted a lower and a higher end"),
        ((*SEARCH, f"objective={EMR}", "lora.alpha=tag(log,interval(0,2))"), "a log scale begins above 0"),
        ((*SEARCH, f"objective={EMR}", "lora.rank=tag(lg,range(1,5))"), "the tag 'lg' means nothing here"),
        ((*SEARCH, f"objective={EMR}", "lora.rank=int(interval(1,9999))"), "lora.rank=9999: the widest layer"),
        ((*SEARCH, f"objective={EMR}", "method=glob(x*)"), "nothing of this name is there to choose from"),
        ((*SEARCH, f"objective={EMR}", "hydra.sweeper.pruner=median"), "add callbacks=live"),
        ((*SEARCH, f"objective={EMR}", "hydra.sweeper.sampler=grid"), "has an interval, of which no grid"),
        ((*SEARCH, f"objective={EMR}", "hydra.sweeper.sampler=tpee"), "Did you mean 'tpe'"),
        ((*SEARCH, f"objective={EMR}", "hydra.sweeper.n_trials=0"), "wanted a whole number of at least 1"),
        ((*SEARCH, f"objective={EMR}", "hydra/launcher=slurm", "hydra.launcher.wait=false"), "a search has to wait"),
        (("hydra/sweeper=optuna", f"objective={EMR}"), "A search or a sweep goes with -m"),
        ((*SEARCH, f"objective={EMR}", "hydra.sweep.subdir=x"), "a search names the folders of its trials itself"),
    ],
)
def test_searches_that_cannot_be_are_told_before_the_start(start, trained, arguments, message):
    result = start(*arguments)
    assert result.code == 2 and message in result.err and not trained.calls, result.err
    assert len(result.err.splitlines()) == 1 and not Path("logs").exists()


def test_without_optuna_a_search_says_what_to_install(start, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    result = start(*SEARCH, f"objective={EMR}")
    assert result.code == 2 and "pip install 'partcraft-lit[search]'" in result.err


def test_trials_that_are_commands_of_their_own(start, trained, monkeypatch):
    """As the pool and SLURM run them, but here in this process: with two in a block, and one that fails."""
    from partcraft_lit.config import launchers
    from partcraft_lit.scheduling.tasks import Outcome

    def run_tasks(tasks, *others):
        failed = {}
        for task in tasks:
            with monkeypatch.context() as patch:
                for name, value in task.environment.items():
                    patch.setenv(name, value)
                with pytest.raises(SystemExit) as ended:
                    cli.main(list(task.steps[0].command)[3:])
            if ended.value.code:
                failed[task.name] = "it failed"
            else:
                assert task.is_done()
        return Outcome(failed)

    def scores(settings):
        if len(trained.calls) == 2:
            raise RuntimeError("out of luck")
        return {EMR: settings.loss.lambda_attn, COSIM: float("nan") if len(trained.calls) == 3 else 0.5}

    monkeypatch.setattr(launchers, "run_tasks", run_tasks)
    trained.scores = scores
    search = (*SEARCH, f"objective=[{EMR},{COSIM}]", "hydra/launcher=pool", "hydra.launcher.jobs=2")
    assert "With an error: trial_001" in start(*search).out
    rows = {row["trial"]: (row["state"], row["note"]) for row in table(trained.folders[0].parent)}
    assert rows == {
        "0": ("complete", ""),
        "1": ("failed", "error"),
        "2": ("failed", f"not finite: {trained.calls[2].loss.lambda_attn}, nan"),
    }
    assert [folder.name for folder in trained.folders] == ["trial_000", "trial_001", "trial_002"]
    again = start(*search)
    assert again.code == 0 and len(trained.calls) == 4 and trained.calls[3].loss == trained.calls[1].loss, again.err
