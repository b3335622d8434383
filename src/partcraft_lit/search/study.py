"""The study of a search: proposes trials, hears what came of them, and may be shared by several processes.

Every trial's proposal depends on the study's seed, the trial's number and what was told before it alone. So a search
that is killed and started again proposes what an undisturbed one does, as long as one process works on it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import locked, make_folder
from partcraft_lit.search.settings import SearchSettings
from partcraft_lit.search.space import Space, Value, grid_size, grid_values
from partcraft_lit.search.storage import open_storage

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial

#: Attributes of a trial: who works on it, why it has no value, whose settings it repeats, whose result
#: it has.
_WORKER, FAILURE, RETRY_OF, FOLDER = "worker", "failure", "retry_of", "folder"
#: Trials that all failed, without one that did not, after which a search ends.
_HOPELESS = 3


@dataclass(frozen=True)
class Proposal:
    """A trial that is to be run.

    Attributes:
        number: of the trial, from 0.
        values: key -> value.
    """

    number: int
    values: Mapping[str, Value]


@dataclass(frozen=True)
class Scored:
    """A trial that ended with a value of each objective; one that is not finite counts as failed."""

    values: tuple[float, ...]


@dataclass(frozen=True)
class Pruned:
    """A trial that was stopped because others did better."""

    step: int


@dataclass(frozen=True)
class Failed:
    """A trial that ended with an error, or not at all."""


Outcome: TypeAlias = Scored | Pruned | Failed


def read_outcome(folder: Path, objectives: Sequence[str]) -> Outcome | None:
    """What a trial wrote into its folder when it ended; None if it has not ended well."""
    try:
        metadata = json.loads((folder / rundir.FINISHED).read_text(encoding="utf-8"))
        if metadata.get("pruned_at") is not None:
            return Pruned(int(metadata["pruned_at"]))
        values = [metadata["objective"][name] for name in objectives]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Scored(tuple(math.nan if value is None else float(value) for value in values))


class Search(AbstractContextManager["Search"]):
    """One process at work on a study.

    Args:
        folder: of the search; the trials are below it.
        settings: of the search.
        space: what is chosen from.
        objectives: what each value is called.

    Attributes:
        stopped: numbers of trials that ended at their time limit in this process.

    Raises:
        UserError: if the study in ``folder`` has another space or other objectives.
    """

    def __init__(self, folder: Path, settings: SearchSettings, space: Space, objectives: Sequence[str]) -> None:
        import optuna

        make_folder(folder)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.folder, self.settings, self.space, self.objectives = folder, settings, dict(space), tuple(objectives)
        self._trials_here: dict[int, Trial] = {}  # that have not ended
        self.stopped: set[int] = set()  # of these, what ``stop`` was told
        self.storage = settings.storage or str(storage_file(folder))
        self._stack = ExitStack()
        self._worker = folder / ".workers" / f"{os.getpid()}-{secrets.token_hex(4)}"
        with locked(folder / ".claims.lock"):
            self.study = optuna.create_study(
                storage=open_storage(self.storage),
                study_name=settings.study_name,
                directions=settings.directions(len(objectives)),
                load_if_exists=True,
                sampler=make_sampler(settings, space, "study"),
            )
            self._check_agreement()
        self._failed_now = 0

    def __enter__(self) -> Search:
        self._stack.enter_context(rundir.held(self._worker))
        with locked(self.folder / ".claims.lock"):
            self._repeat_failed()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._stack.close()
        if kind is None and not self._trials_here:
            shutil.rmtree(self._worker, ignore_errors=True)  # else it shows that the process has ended

    def claim(self) -> list[Proposal]:
        """Trials for this process to run next; empty when none is left for it.

        First those of processes that died. Proposals are made in blocks of ``settings.block``, so that what is known
        when a trial is proposed does not depend on when a search was killed.
        """
        with locked(self.folder / ".claims.lock"):
            claimed = [self._complete(trial) for trial in self._trials() if self._is_orphan(trial)]
            while self._wants_more(len(claimed)):
                claimed.append(self._ask())
            return claimed

    def tell(self, number: int, outcome: Outcome, folder: Path | None = None) -> None:
        """Ends a trial. A value that is not finite is a failure, so it is never the best.

        Args:
            number: of a trial that was claimed here.
            outcome: what came of it.
            folder: of its result, if that is not the trial's own.
        """
        from optuna.samplers import RandomSampler
        from optuna.trial import TrialState

        self.study.sampler = RandomSampler()  # that of a grid would stop an optimisation of which there is none
        if folder is not None and folder != self.trial_folder(number):
            self._trials_here[number].set_user_attr(FOLDER, str(folder))

        if isinstance(outcome, Pruned):
            self.study.tell(number, state=TrialState.PRUNED)
        elif isinstance(outcome, Scored) and all(map(math.isfinite, outcome.values)):
            self.study.tell(number, list(outcome.values))
        else:
            self._failed_now += isinstance(outcome, Failed)
            reason = "error" if isinstance(outcome, Failed) else f"not finite: {', '.join(map(str, outcome.values))}"
            self._trials_here[number].set_user_attr(FAILURE, reason)
            self.study.tell(number, state=TrialState.FAIL)
        del self._trials_here[number]

    def stop(self, number: int) -> None:
        """Notes that a trial ended at ``trainer.max_time``: it is claimed again by the next start, and goes on.

        Until then it has neither a value nor failed.
        """
        self.stopped.add(number)

    def trial_folder(self, number: int) -> Path:
        """Of a trial that was claimed."""
        return self.folder / str(self._trials()[number].user_attrs[FOLDER])

    def repeated(self) -> dict[int, int]:
        """Trials that failed -> the trial with the same values that counts instead."""
        attributes = {trial.number: trial.user_attrs for trial in self._trials()}
        return {own[RETRY_OF]: number for number, own in attributes.items() if RETRY_OF in own}

    def raise_if_all_failed(self) -> None:
        """Raises a UserError if nothing but failures came so far: the next trials would fail as well."""
        if self._failed_now < max(_HOPELESS, self.settings.block):
            return
        if all(trial.state.name in ("FAIL", "RUNNING", "WAITING") for trial in self._trials()):
            raise UserError(
                f"All {self._failed_now} trials failed, so the search ends here. What happened is in the run.log of "
                f"each, in {self.folder}. Fix it and start the same command again; it tries them again."
            )

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _wants_more(self, claimed: int) -> bool:
        trials = self._trials()
        number, jobs = len(trials), self.settings.block
        if claimed >= jobs or (claimed and number % jobs == 0):
            return False
        counted = number - len(self.repeated())
        waiting = any(trial.state.name == "WAITING" for trial in trials)
        most = grid_size(self.space) if self.settings.sampler == "grid" else None
        return waiting or counted < min(self.settings.n_trials, most or self.settings.n_trials)

    def _ask(self) -> Proposal:
        """A new trial, or one that waits. The lock is held, so its number is known beforehand."""
        waiting = [trial.number for trial in self._trials() if trial.state.name == "WAITING"]
        number = min(waiting, default=len(self._trials()))
        self.study.sampler = make_sampler(self.settings, self.space, number)
        return self._suggested(self.study.ask())

    def _complete(self, frozen: FrozenTrial) -> Proposal:
        """The trial of a dead process, which may have been killed before all its values were chosen."""
        from optuna.trial import Trial

        self.study.sampler = make_sampler(self.settings, self.space, frozen.number)
        return self._suggested(Trial(self.study, frozen._trial_id))

    def _suggested(self, trial: Trial) -> Proposal:
        trial.set_user_attr(_WORKER, str(self._worker))
        if FOLDER not in trial.user_attrs:
            trial.set_user_attr(FOLDER, self._free_name(trial.number))
        self._trials_here[trial.number] = trial
        _ = trial.relative_params  # chosen together, and now
        values = {}
        for key, dimension in self.space.items():
            # A sampler of its own: values that were chosen before a kill are not drawn again.
            self.study.sampler = make_sampler(self.settings, self.space, f"{trial.number}/{key}")
            values[key] = dimension.suggest(trial, key)
        return Proposal(trial.number, values)

    def _free_name(self, number: int) -> str:
        """Of a folder that is not there: what another study has left in one is not the result of this."""
        names = (f"trial_{number:03d}{'' if count == 1 else f'_{count}'}" for count in itertools.count(1))
        return next(name for name in names if not (self.folder / name).exists())

    def _is_orphan(self, trial: FrozenTrial) -> bool:
        """Whether nobody works on a trial that was begun. Launchers wait for a job of it that is still at work."""
        if trial.state.name != "RUNNING":
            return False
        worker = trial.user_attrs.get(_WORKER)
        return worker is None or (Path(worker).exists() and not rundir.in_use(Path(worker)))

    def _repeat_failed(self) -> None:
        """Trials that ended with an error are tried once more at every start of the search."""
        repeated = self.repeated()
        for trial in self._trials():
            failed = trial.state.name == "FAIL" and trial.user_attrs.get(FAILURE) == "error"
            if failed and trial.number not in repeated and trial.params:
                self.study.enqueue_trial(trial.params, user_attrs={RETRY_OF: trial.number})

    def _check_agreement(self) -> None:
        """What the study was begun with, or is begun with now."""
        now = {"objectives": list(self.objectives), "space": {key: repr(one) for key, one in self.space.items()}}
        before = self.study.user_attrs.get("search")
        if before is None:
            self.study.set_user_attr("search", now)
        elif before != now:
            raise UserError(
                f"The study '{self.settings.study_name}' in {self.storage} searches for {_described(before)}, and this "
                f"command for {_described(now)}. Give it another folder, hydra.sweep.dir=FOLDER, or another "
                "hydra.sweeper.study_name."
            )


def storage_file(folder: Path) -> Path:
    """Where the study of a search lies unless it has another place."""
    return folder / "search.journal"


def make_sampler(settings: SearchSettings, space: Space, place: int | str) -> BaseSampler:
    """A sampler whose random numbers depend on the seed and the place alone."""
    from optuna import samplers

    digest = hashlib.sha256(f"{settings.seed}/{place}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big")
    if settings.sampler == "random":
        return samplers.RandomSampler(seed=seed)
    if settings.sampler == "grid":
        # Its seed decides the order of the grid, which is one for all trials.
        grid = {key: list(grid_values(dimension) or ()) for key, dimension in space.items()}
        return samplers.GridSampler(grid, seed=settings.seed)
    if settings.sampler == "nsgaii":
        return samplers.NSGAIISampler(seed=seed)
    return samplers.TPESampler(seed=seed)


def make_pruner(kind: str | None, startup_trials: int = 0, warmup_steps: int = 0) -> BasePruner:
    """The pruner of this name; the numbers are those of the median pruner."""
    from optuna import pruners

    if kind == "median":
        return pruners.MedianPruner(startup_trials, warmup_steps)
    return pruners.SuccessiveHalvingPruner() if kind == "halving" else pruners.NopPruner()


def check(settings: SearchSettings, space: Space, objectives: Sequence[str]) -> None:
    """Raises a UserError for a search that cannot be."""
    if not objectives:
        raise UserError(
            "A search needs an objective, a key of scores.json: objective=eval/emr@4_species, or several, "
            "objective=[eval/emr@4_species,eval/cosim@4_species]."
        )
    if not space:
        raise UserError(
            "A search needs something to search: 'loss.lambda_attn=tag(log,interval(1e-4,1))', 'lora.rank=4,8,16' or "
            "'mapper.hidden=range(64,512,64)'. Without one, leave hydra/sweeper=optuna and -m out."
        )
    directions = settings.directions(len(objectives))
    if len(directions) != len(objectives):
        raise UserError(
            f"hydra.sweeper.direction has {len(directions)} entries for {len(objectives)} objectives: give one for "
            "all, or one for each."
        )
    if settings.pruner is not None and len(objectives) > 1:
        raise UserError(
            f"hydra.sweeper.pruner={settings.pruner}: with several objectives no trial is better than another at half "
            "way. Leave the pruner out, or take one objective."
        )
    if settings.sampler == "grid" and grid_size(space) is None:
        endless = [key for key, dimension in space.items() if grid_values(dimension) is None]
        raise UserError(
            f"hydra.sweeper.sampler=grid: {endless[0]} has an interval, of which no grid comes to an end. Give it "
            "values or a range, or take hydra.sweeper.sampler=tpe."
        )


def _described(search: Mapping[str, Any]) -> str:
    return json.dumps(search, ensure_ascii=False)
