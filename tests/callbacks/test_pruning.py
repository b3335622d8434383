from __future__ import annotations

import math
from types import SimpleNamespace

import optuna
import pytest

from partcraft_lit.callbacks.live_score import LiveScore
from partcraft_lit.callbacks.pruning import Pruning, pruned_at
from partcraft_lit.search.storage import open_storage
from partcraft_lit.search.study import make_pruner


@pytest.fixture
def study(tmp_path):
    """A study of six trials that scored 0.9 at step 10, and one that runs; others by ``direction``."""

    def begun(direction="maximize", pruner="median"):
        storage = str(tmp_path / f"{direction}.journal")
        study = optuna.create_study(
            storage=open_storage(storage), study_name="search", direction=direction, pruner=make_pruner(pruner)
        )
        for _ in range(6):
            trial = study.ask()
            trial.report(0.9 if direction == "maximize" else -0.9, 10)
            trial.should_prune()  # notes how far it came
            study.tell(trial, 1.0)
        study.ask()
        return SimpleNamespace(study=study, storage=storage)

    return begun


def step(pruning, number, score, max_steps=100):
    """One optimizer step at which the live score was measured; whether training is to stop."""
    live = LiveScore(every_n_steps=10)
    live.scored_at, live.score = number, score
    trainer = SimpleNamespace(
        global_step=number, callbacks=[live, pruning], is_global_zero=True, max_steps=max_steps, should_stop=False,
        strategy=SimpleNamespace(broadcast=lambda value: value),
    )  # fmt: skip
    pruning.on_train_batch_end(trainer, None, None, None, 0)
    return trainer.should_stop


@pytest.mark.parametrize("direction, told", [("maximize", 0.1), ("minimize", -0.1)])
@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_a_trial_behind_the_others_ends(study, direction, told, pruner):
    begun = study(direction, pruner)
    pruning = Pruning(begun.storage, "search", 6, pruner)
    assert step(pruning, 10, 0.1) and pruning.pruned_at == 10 and pruned_at([pruning]) == 10
    assert begun.study.trials[6].intermediate_values == {10: told}


def test_a_trial_before_the_others_goes_on_and_reports_once(study, recwarn):
    begun = study()
    pruning = Pruning(begun.storage, "search", 6, "median")
    assert not step(pruning, 10, 0.95) and pruned_at([pruning]) is None
    again = Pruning(begun.storage, "search", 6, "median")  # the run was continued before this step
    assert not step(again, 10, 0.95)
    assert not [warning for warning in recwarn if "report" in str(warning.message)]


def test_the_first_trials_and_the_last_step_are_left_alone(study):
    begun = study()
    assert not step(Pruning(begun.storage, "search", 6, "median", startup_trials=7), 10, 0.1)
    assert not step(Pruning(begun.storage, "search", 6, "median", warmup_steps=20), 10, 0.1)
    assert not step(Pruning(begun.storage, "search", 6, "median"), 10, 0.1, max_steps=10)


def test_what_is_no_number_is_not_reported_and_a_study_out_of_reach_ends_nothing(study, tmp_path):
    begun = study()
    assert not step(Pruning(begun.storage, "search", 6, "median"), 10, math.nan)
    assert not step(Pruning(begun.storage, "search", 6, "median"), 10, None)
    assert begun.study.trials[6].intermediate_values == {}
    with pytest.warns(UserWarning, match="The search was not told the live score at step 10"):
        assert not step(Pruning(begun.storage, "other", 6, "median"), 10, 0.1)
