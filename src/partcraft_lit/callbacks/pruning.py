"""Tells a search the live score of its trial, and ends the training where others do better."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from partcraft_lit.callbacks.live_score import LiveScore
from partcraft_lit.core.settings import Count


class Pruning(Callback):
    """One trial of a study. A pruned training ends as a finished one does: with a checkpoint, but without scores.

    The live score is reported once per step, however often a run is continued; one that is not finite is not reported.
    Where the study minimises its objective, the live score is reported with the other sign, since more of it is better.

    Args:
        storage: of the study, see ``search.storage.open_storage``.
        study_name: within the storage.
        trial: number of the trial.
        pruner: what decides.
        startup_trials, warmup_steps: before which nothing is decided, of the median pruner.
    """

    def __init__(
        self,
        storage: str,
        study_name: str,
        trial: Count,
        pruner: Literal["median", "halving"],
        startup_trials: Count = 5,
        warmup_steps: Count = 0,
    ) -> None:
        self.storage, self.study_name, self.number = storage, study_name, trial
        self.pruner, self.startup_trials, self.warmup_steps = pruner, startup_trials, warmup_steps
        self.pruned_at: int | None = None
        self._reported = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        live = next((one for one in trainer.callbacks if isinstance(one, LiveScore)), None)  # type: ignore[attr-defined]
        if live is None or live.scored_at != step or self._reported == step:
            return
        self._reported = step
        stop = trainer.is_global_zero and self._should_stop(step, live.score)
        # The last step needs no decision: there is nothing left to save.
        if trainer.strategy.broadcast(stop) and not 0 < trainer.max_steps <= step:
            self.pruned_at = step
            trainer.should_stop = True
            rank_zero_info(f"The search stops this trial after step {step}: others did better by then.")

    def _should_stop(self, step: int, score: float | None) -> bool:
        """Reports; a study that cannot be reached ends no training."""
        if score is None or not math.isfinite(score):
            return False
        try:
            return self._report(step, score)
        except Exception as error:
            rank_zero_warn(f"The search was not told the live score at step {step}: {type(error).__name__}: {error}")
            return False

    def _report(self, step: int, score: float) -> bool:
        import optuna

        from partcraft_lit.search.storage import open_storage
        from partcraft_lit.search.study import make_pruner

        pruner = make_pruner(self.pruner, self.startup_trials, self.warmup_steps)
        study = optuna.load_study(study_name=self.study_name, storage=open_storage(self.storage), pruner=pruner)
        frozen = study.get_trials(deepcopy=False)[self.number]
        trial = optuna.trial.Trial(study, frozen._trial_id)
        if step not in frozen.intermediate_values:
            trial.report(score if study.direction.name == "MAXIMIZE" else -score, step)
        return trial.should_prune()


def pruned_at(callbacks: Iterable[object]) -> int | None:
    """The optimizer step after which a search ended the training; None if it did not."""
    return next((one.pruned_at for one in callbacks if isinstance(one, Pruning)), None)
