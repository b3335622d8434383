from __future__ import annotations

import json
import math
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.search.results import progress, summary, trials_of, write_results
from partcraft_lit.search.settings import SearchSettings
from partcraft_lit.search.space import Choice, Interval, Steps
from partcraft_lit.search.storage import open_storage
from partcraft_lit.search.study import Failed, Pruned, Scored, Search, check, read_outcome, storage_file

SETTINGS = SearchSettings(
    n_trials=14, n_jobs=1, direction="maximize", sampler="tpe", seed=3, pruner=None, pruner_startup_trials=5,
    pruner_warmup_steps=0, storage=None, study_name="search",
)  # fmt: skip
SPACE = {"lr": Interval(1e-4, 1, log=True), "rank": Choice((4, 8, "null")), "k": Steps((3, 5, 7))}
SAMPLERS = {"tpe": SPACE, "random": SPACE, "nsgaii": SPACE, "grid": {"rank": SPACE["rank"], "k": SPACE["k"]}}


def score(values):
    """Best at a learning rate of 0.01; failing for one choice."""
    return -abs(math.log10(values.get("lr", 0.01)) + 2) + values["k"] if values["rank"] != "null" else math.nan


def run(folder: Path, settings: SearchSettings = SETTINGS, space=SPACE, most: int = 1000, tell: bool = True):
    """Goes on with a search for at most so many trials; returns what was run."""
    done = []
    with Search(folder, settings, space, ["score"]) as search:
        while len(done) < most and (batch := search.claim()):
            for proposal in batch:
                done.append((proposal.number, dict(proposal.values)))
                if tell:
                    search.tell(proposal.number, Scored((score(proposal.values),)))
    return done


def results(folder: Path, settings: SearchSettings = SETTINGS, space=SPACE):
    with Search(folder, settings, space, ["score"]) as search:
        return sorted(
            ((t.number, t.state, t.values, tuple(t.params.items())) for t in trials_of(search)), key=lambda row: row[0]
        )


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("jobs", [1, 4])
def test_a_search_that_stopped_anywhere_goes_on_to_the_same_end(tmp_path, sampler, jobs):
    settings, space = replace(SETTINGS, sampler=sampler, n_jobs=jobs), SAMPLERS[sampler]
    whole = run(tmp_path / "whole", settings, space)
    assert [number for number, _ in whole] == list(range(9 if sampler == "grid" else 14))
    for stop in (1, 6):
        ran = run(tmp_path / str(stop), settings, space, most=stop)
        ran += run(tmp_path / str(stop), settings, space)
        assert ran == whole
    assert run(tmp_path / "whole", settings, space) == []  # nothing is left
    assert results(tmp_path / "whole", settings, space) == results(tmp_path / "6", settings, space)


@pytest.mark.parametrize("known", [0, 1, 2])
def test_a_trial_whose_process_died_while_its_values_were_chosen_is_completed_alike(tmp_path, monkeypatch, known):
    whole = run(tmp_path / "whole")
    run(tmp_path / "killed", most=12)

    class Killed(Exception):
        pass

    key = list(SPACE)[known]
    kind = type(SPACE[key])
    with monkeypatch.context() as patch:
        patch.setattr(kind, "suggest", lambda *arguments: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            run(tmp_path / "killed")
    assert run(tmp_path / "killed") == whole[12:]


def test_a_larger_number_of_trials_goes_on_with_the_same_study(tmp_path):
    run(tmp_path / "a", replace(SETTINGS, n_trials=5))
    assert [number for number, _ in run(tmp_path / "a", replace(SETTINGS, n_trials=7))] == [5, 6]


def _work(folder, kill):
    if kill:
        with Search(folder, SETTINGS, SPACE, ["score"]) as search:
            search.claim()
            os.kill(os.getpid(), signal.SIGKILL)
    run(folder)


def test_several_processes_share_a_study_and_one_that_is_killed_loses_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    killed = context.Process(target=_work, args=(tmp_path, True))
    killed.start()
    killed.join()
    workers = [context.Process(target=_work, args=(tmp_path, False)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    rows = results(tmp_path)
    assert [row[0] for row in rows] == list(range(14)) and {row[1] for row in rows} == {"complete", "failed"}


def test_what_a_living_process_works_on_is_left_to_it(tmp_path):
    with Search(tmp_path, SETTINGS, SPACE, ["score"]) as first:
        (mine,) = first.claim()
        with Search(tmp_path, SETTINGS, SPACE, ["score"]) as second:
            (other,) = second.claim()
            assert (mine.number, other.number) == (0, 1)
    with Search(tmp_path, SETTINGS, SPACE, ["score"]) as third:
        assert third.claim() == [mine, other]  # both have ended without a result


def test_a_value_that_is_no_number_is_never_the_best(tmp_path):
    for direction in ("maximize", "minimize"):
        settings = replace(SETTINGS, n_trials=4, direction=direction)
        with Search(tmp_path / direction, settings, SPACE, ["score"]) as search:
            for value in (1.0, math.nan, math.inf, -math.inf):
                search.tell(search.claim()[0].number, Scored((value,)))
            trials = write_results(search)
        assert [(t.number, t.best) for t in trials if t.best] == [(0, True)]
        assert "not finite: nan" in (tmp_path / direction / "search.csv").read_text()
        assert run(tmp_path / direction, settings) == []  # such a trial is not tried again


def test_an_error_is_tried_again_at_the_next_start_with_the_same_values(tmp_path):
    settings = replace(SETTINGS, n_trials=3)
    with Search(tmp_path, settings, SPACE, ["score"]) as search:
        (first,) = search.claim()
        search.tell(first.number, Failed())
        for _ in range(2):
            search.tell(search.claim()[0].number, Scored((1.0,)))
        assert search.claim() == []
        assert "1 failed" in summary(search, trials_of(search))
    with Search(tmp_path, settings, SPACE, ["score"]) as search:
        (again,) = search.claim()
        assert again.number == 3 and again.values == first.values
        search.tell(3, Scored((2.0,)))
        assert progress(search, 3) == "Trial 3 (3 of 3): score=2; best so far: trial 3, score=2"
        assert search.claim() == []
        assert "again as trial 3" in (write_results(search) and (tmp_path / "search.md").read_text())


def test_a_trial_that_ended_at_its_time_limit_has_not_failed_and_goes_on_at_the_next_start(tmp_path):
    settings = replace(SETTINGS, n_trials=2)
    with Search(tmp_path, settings, SPACE, ["score"]) as search:
        (first,) = search.claim()
        search.stop(first.number)
        search.tell(search.claim()[0].number, Scored((1.0,)))
        assert search.claim() == []
        trials = write_results(search)
        assert [(t.number, t.state, t.note) for t in trials] == [
            (1, "complete", ""),
            (0, "stopped", "trainer.max_time"),
        ]
        said = summary(search, trials)
        assert "1 complete, 1 stopped" in said and "trial_000. The same command continues" in said
        assert progress(search, 0).startswith("Trial 0 (1 of 2): stopped")
    with Search(tmp_path, settings, SPACE, ["score"]) as search:
        assert search.claim() == [first]
        search.tell(first.number, Scored((2.0,)))
        assert search.claim() == [] and {trial.state for trial in trials_of(search)} == {"complete"}


def test_what_another_study_left_in_the_folder_is_no_result_of_this_one(tmp_path):
    (tmp_path / "trial_000").mkdir()
    rundir.mark_finished(tmp_path / "trial_000", objective={"score": 9.0})
    with Search(tmp_path, SETTINGS, SPACE, ["score"]) as search:
        search.claim()
        assert search.trial_folder(0).name == "trial_000_2"
    with Search(tmp_path, SETTINGS, SPACE, ["score"]) as search:
        search.claim()
        assert search.trial_folder(0).name == "trial_000_2"


def test_a_search_of_which_all_fails_ends(tmp_path):
    with Search(tmp_path, SETTINGS, SPACE, ["score"]) as search:
        for _ in range(2):
            search.tell(search.claim()[0].number, Failed())
            search.raise_if_all_failed()
        search.tell(search.claim()[0].number, Failed())
        with pytest.raises(UserError, match="All 3 trials failed"):
            search.raise_if_all_failed()


def test_a_study_is_not_mixed_with_another(tmp_path):
    run(tmp_path, most=1)
    with pytest.raises(UserError, match="Give it another folder"):
        run(tmp_path, space={"lr": Interval(0, 1)})


def test_several_objectives_have_a_front(tmp_path):
    settings = replace(SETTINGS, n_trials=3, direction=("maximize", "minimize"))
    with Search(tmp_path, settings, SPACE, ["emr", "fid"]) as search:
        for values in ((0.5, 10.0), (0.7, 20.0), (0.4, 30.0)):
            search.tell(search.claim()[0].number, Scored(values))
        trials = write_results(search)
    assert [(t.number, t.best) for t in trials] == [(1, True), (0, True), (2, False)]
    assert (tmp_path / "search.png").is_file()


def test_tables_and_figure_are_beside_the_trials(tmp_path):
    run(tmp_path)
    with Search(tmp_path, SETTINGS, SPACE, ["score"]) as search:
        trials = write_results(search)
        text = summary(search, trials)
    best = max(trials, key=lambda trial: trial.values[0] if trial.values else -math.inf)
    assert trials[0] == best and f"Best: trial {best.number}, score={best.values[0]:.6g} with lr=" in text
    head, first = (tmp_path / "search.csv").read_text().splitlines()[:2]
    assert head == "trial,state,score,lr,rank,k,folder,note" and first.startswith(f"{best.number},complete,")
    assert (tmp_path / "search.svg").is_file()


def test_the_outcome_of_a_trial_is_what_it_wrote_when_it_ended(tmp_path):
    assert read_outcome(tmp_path, ["a"]) is None
    rundir.mark_finished(tmp_path, objective={"a": 0.5, "b": None})
    assert read_outcome(tmp_path, ["a"]) == Scored((0.5,)) and read_outcome(tmp_path, ["c"]) is None
    outcome = read_outcome(tmp_path, ["a", "b"])
    assert isinstance(outcome, Scored) and math.isnan(outcome.values[1])
    rundir.mark_finished(tmp_path, pruned_at=40)
    assert read_outcome(tmp_path, ["a"]) == Pruned(40)


@pytest.mark.parametrize("place", ["{folder}/other.journal", "sqlite:///{folder}/study.db"])
def test_a_study_may_lie_elsewhere(tmp_path, place):
    settings = replace(SETTINGS, n_trials=3, storage=place.format(folder=tmp_path))
    assert len(run(tmp_path / "search", settings)) == 3 and run(tmp_path / "search", settings) == []
    assert not storage_file(tmp_path / "search").exists()


def test_half_an_entry_at_the_end_of_a_journal_is_dropped(tmp_path):
    run(tmp_path, most=2)
    file = storage_file(tmp_path)
    with file.open("ab") as journal:
        journal.write(json.dumps({"op_code": 4}).encode()[:7])
    assert [number for number, _ in run(tmp_path, most=1)] == [2]
    assert next(number for number, _ in run(tmp_path)) == 3


def test_a_storage_that_cannot_be_opened(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        open_storage("sqlite:////nowhere/at/all.db")
    (tmp_path / "text").write_text("not a journal\n" * 3)
    with pytest.raises(UserError, match="cannot be read as a journal"):
        open_storage(str(tmp_path / "text"))


@pytest.mark.parametrize(
    "change, space, objectives, message",
    [
        ({}, SPACE, [], "A search needs an objective"),
        ({}, {}, ["a"], "A search needs something to search"),
        ({"direction": ("maximize",)}, SPACE, ["a", "b"], "direction has 1 entries for 2 objectives"),
        ({"pruner": "median"}, SPACE, ["a", "b"], "with several objectives no trial is better"),
        ({"sampler": "grid"}, SPACE, ["a"], "lr has an interval"),
    ],
)
def test_searches_that_cannot_be(change, space, objectives, message):
    with pytest.raises(UserError, match=message):
        check(replace(SETTINGS, **change), space, objectives)
