"""Settings of a search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import Count, Positive

Direction = Literal["maximize", "minimize"]


@dataclass(frozen=True)
class SearchSettings:
    """How a search goes on.

    Attributes:
        n_trials: of the whole study, those of earlier starts and of other processes included.
        n_jobs: trials that are proposed together and handed to the launcher; None for as many as it runs at once.
        direction: of each objective; one for all, or a list.
        sampler: what proposes.
        seed: of the sampler.
        pruner: what stops a trial by its live score; None stops none.
        pruner_startup_trials: trials that are never stopped.
        pruner_warmup_steps: optimizer steps before which none is stopped.
        storage: file or optuna's URL of the study; None for a file beside the trials.
        study_name: within the storage.
    """

    n_trials: Positive
    n_jobs: Positive | None
    direction: Direction | tuple[Direction, ...]
    sampler: Literal["tpe", "random", "grid", "nsgaii"]
    seed: Count
    pruner: Literal["median", "halving"] | None
    pruner_startup_trials: Count
    pruner_warmup_steps: Count
    storage: str | None
    study_name: str

    @property
    def block(self) -> int:
        """Number of trials that are proposed together."""
        return self.n_jobs or 1

    def directions(self, objectives: int) -> list[Direction]:
        """One per objective."""
        given = self.direction
        return [given] * objectives if isinstance(given, str) else list(given)
