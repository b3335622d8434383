"""``hydra/sweeper=optuna``: a sweep whose jobs are proposed by a search, and told to it when they end."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from partcraft_lit.config import cmdline, plugins, sources
from partcraft_lit.config import compose as config
from partcraft_lit.config.validation import validate
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.files import locked, make_folder
from partcraft_lit.scheduling.gpus import deal
from partcraft_lit.search.results import progress, summary, write_results
from partcraft_lit.search.settings import SearchSettings
from partcraft_lit.search.space import Choice, Dimension, Interval, Space, Steps, Value, representatives
from partcraft_lit.search.storage import check_installed
from partcraft_lit.search.study import Failed, Proposal, Search, check, read_outcome, storage_file

#: What does not decide what a search finds, but how fast or how long it goes on.
_NOT_OF_THE_SEARCH = (
    "hydra.sweeper.n_trials",
    "hydra.sweeper.n_jobs",
    "hydra/launcher",
    "hydra.launcher.",
    "trainer.max_time",
)


@dataclass(frozen=True)
class Plan:
    """A search as the command line asks for it.

    Attributes:
        settings: of the search.
        space: what it chooses from.
        fixed: overrides that all jobs have.
        points: overrides of a few jobs in which every choice, and both ends of every interval, occur.
    """

    settings: SearchSettings
    space: Space
    fixed: tuple[str, ...]
    points: tuple[list[str], ...]


def plan_of(verb: str, overrides: Sequence[str]) -> Plan | None:
    """The search that a sweep is; None if its jobs are known beforehand.

    Raises:
        UserError: for an interval without a search, and for a search that cannot be.
    """
    parser = OverridesParser.create(config_loader=sources.loader(verb))
    parsed = [cmdline.parse(text, parser) for text in overrides]
    node = _sweeper_node(verb, parsed)
    if not str(node.get("_target_", "")).endswith(OptunaSweeper.__name__):
        _check_finite(parsed)
        return None
    check_installed()
    params = node.pop("params", None) or {}
    parsed = [*(cmdline.parse(f"{key}={value}", parser) for key, value in params.items()), *parsed]
    settings = validate({k: v for k, v in node.items() if k != "_target_"}, SearchSettings, "hydra.sweeper")
    fixed, space = split(parsed)
    for text in fixed:
        if text.startswith("hydra.sweep.subdir="):
            raise UserError(f"{text}: a search names the folders of its trials itself; hydra.sweep.dir is free.")
    points = tuple([*fixed, *as_overrides(point)] for point in representatives(space))
    return Plan(settings, space, tuple(fixed), points)


def sweep_points(verb: str, overrides: Sequence[str]) -> Iterator[list[str]]:
    """Overrides of a few jobs in which everything that a sweep or a search varies occurs."""
    plan = plan_of(verb, overrides)
    yield from cmdline.sweep_points(verb, overrides) if plan is None else plan.points


def check_plan(plan: Plan, values: Mapping[str, Any], launcher: Mapping[str, Any]) -> None:
    """Raises a UserError for a search of which no trial would be of use.

    Args:
        plan: of the search.
        values: of one job.
        launcher: settings of the launcher.
    """
    if launcher.get("wait") is False:
        raise UserError("hydra.launcher.wait=false: a search has to wait for the trials that it learns from.")
    check(plan.settings, plan.space, objectives_of(values["objective"]))
    if plan.settings.pruner is not None and not (values["callbacks"] or {}).get("live_score"):
        raise UserError(
            f"hydra.sweeper.pruner={plan.settings.pruner} stops trials by their live score, and these have none: add "
            "callbacks=live."
        )


def choose_folder(plan: Plan, verb: str, overrides: Sequence[str]) -> tuple[Path, bool]:
    """Where a search works, and whether it was begun before: the same command goes on with it."""
    asked = [text for text in overrides if not text.startswith(_NOT_OF_THE_SEARCH)]
    digest = rundir.settings_hash({"overrides": sorted(asked)}, ())
    given = Path(config.hydra_values(verb, plan.points[0], "sweep.dir"))
    if "${now:" not in config.hydra_values(verb, plan.points[0], "sweep.dir", resolve=False):
        return given, storage_file(given).exists()
    root = given.parent
    make_folder(root)
    with locked(root / ".searches.lock"):
        for folder in sorted(root.glob(f"*-{digest}"), reverse=True):
            if storage_file(folder).exists():
                return folder, True
        folder = rundir.new_folder(root, digest)
        storage_file(folder).touch()  # from now on another start of this command finds it
        return folder, False


def split(parsed: Sequence[Override]) -> tuple[list[str], dict[str, Dimension]]:
    """Overrides that all jobs have, and what is chosen; the last of several for one key counts."""
    last = {override.get_key_element(): override for override in parsed}
    space = {key: _dimension(key, override) for key, override in last.items() if override.is_sweep_override()}
    fixed = [str(override.input_line) for key, override in last.items() if key not in space]
    return fixed, space


def as_overrides(values: Mapping[str, Value]) -> list[str]:
    """Chosen values as they are written on the command line."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def objectives_of(objective: Any) -> tuple[str, ...]:
    """Names of the scores that a search asks for."""
    return () if objective is None else (objective,) if isinstance(objective, str) else tuple(objective)


def _dimension(key: str, override: Override) -> Dimension:
    value = override.value()
    tags: set[str] = getattr(value, "tags", set())
    if unknown := sorted(tags - {"log"}):
        raise UserError(
            f"{override.input_line}: the tag '{unknown[0]}' means nothing here. {did_you_mean('', ['log'])}"
        )
    if isinstance(value, IntervalSweep):
        return _interval(key, value.start, value.end, "log" in tags)
    if isinstance(value, RangeSweep):
        values = tuple(sorted(value.range()))
        if not values:
            raise UserError(f"{override.input_line}: the range is empty.")
        if "log" not in tags:
            return Steps(values)
        if not all(isinstance(number, int) for number in values) or value.step != 1:
            raise UserError(f"{override.input_line}: a log scale has no even steps: tag(log,interval(LOW,HIGH)).")
        return _interval(key, values[0], values[-1], True)
    if tags:
        raise UserError(f"{override.input_line}: a log scale is one of numbers: tag(log,interval(LOW,HIGH)).")
    chosen = dict.fromkeys(override.sweep_iterator(transformer=_stored))
    if not chosen:
        raise UserError(f"{override.input_line}: nothing of this name is there to choose from.")
    return Choice(tuple(chosen))


def _interval(key: str, low: Any, high: Any, log: bool) -> Interval:
    whole = isinstance(low, int) and isinstance(high, int)
    if not low < high:
        raise UserError(f"{key}=interval({low},{high}): wanted a lower and a higher end.")
    if log and low <= 0:
        raise UserError(f"{key}=tag(log,interval({low},{high})): a log scale begins above 0.")
    return Interval(low, high, log, whole)


def _stored(element: Any) -> Any:
    """A choice as optuna stores it: numbers as they are, all else as it is written."""
    return element if isinstance(element, bool | int | float) else Override._get_value_element_as_str(element)


def _sweeper_node(verb: str, parsed: Sequence[Override]) -> dict[str, Any]:
    """``hydra.sweeper``, composed with the overrides that are not sweeps."""
    whole = [str(one.input_line) for one in parsed if not one.is_sweep_override()]
    node: dict[str, Any] = config.hydra_values(verb, whole, "sweeper")
    return node


def _check_finite(parsed: Sequence[Override]) -> None:
    for override in parsed:
        if override.is_interval_sweep():
            raise UserError(
                f"{override.input_line}: an interval has no end of values. A search over it is hydra/sweeper=optuna "
                f"with objective=NAME; a sweep takes {override.key_or_group}=A,B,C or range(START,STOP,STEP)."
            )


class OptunaSweeper(Sweeper):
    """Hands the trials of a search to the launcher, batch by batch.

    Args:
        settings: the keys of ``hydra.sweeper``: those of :class:`SearchSettings`, and ``params``, further overrides to
            choose from, key -> text.
    """

    __module__ = plugins.PACKAGE

    def __init__(self, **settings: Any) -> None:
        params = settings.pop("params", None) or {}
        self.params = [f"{key}={value}" for key, value in params.items()]
        self.settings = validate(_plain(settings), SearchSettings, "hydra.sweeper")
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> Any:
        assert self.config is not None and self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self.params, *arguments])
        self.fixed, space = split(parsed)
        first = loader.load_sweep_config(self.config, [*self.fixed, *as_overrides(representatives(space)[0])])
        self.objectives = objectives_of(_plain(first.objective))
        folder = Path(self.config.hydra.sweep.dir).absolute()
        make_folder(folder)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        with Search(folder, self._settled(), space, self.objectives) as search:
            try:
                while batch := search.claim():
                    self._run(search, batch)
                    search.raise_if_all_failed()
            finally:
                trials = write_results(search)
            print(summary(search, trials), flush=True)  # noqa: T201
        return None

    def _settled(self) -> SearchSettings:
        """With a storage that the jobs find from any folder, and as many jobs as the launcher runs at once."""
        storage, launcher = self.settings.storage, self.config.hydra.launcher
        if storage is not None and "://" not in storage:
            storage = str(Path(storage).expanduser().absolute())
        slots = len(deal(launcher.gpus and tuple(launcher.gpus), 1)) if "PoolLauncher" in launcher["_target_"] else 1
        jobs = self.settings.n_jobs or launcher.get("jobs") or max(slots, 1)
        return dataclasses.replace(self.settings, storage=storage, n_jobs=jobs)

    def _run(self, search: Search, batch: Sequence[Proposal]) -> None:
        """Runs those of a batch whose results are not there yet, and tells the search of all, in their order."""
        assert self.launcher is not None
        places = {one.number: [search.trial_folder(one.number)] for one in batch}
        unfinished: set[int] = set()
        todo = [one for one in batch if read_outcome(places[one.number][0], self.objectives) is None]
        for block in _consecutive(todo):
            jobs = [[*self.fixed, *as_overrides(one.values), *self._own(search, one)] for one in block]
            returned = self.launcher.launch(jobs, initial_job_idx=block[0].number)
            for one, job in zip(block, returned, strict=True):
                # Where a launcher has the result of an equal job; Hydra's own names the folder of the command.
                if search.folder in (place := Path(str(job.working_dir))).parents:
                    places[one.number].append(place)
                finished = any((place / rundir.FINISHED).is_file() for place in places[one.number])
                if job.status is JobStatus.COMPLETED and not finished:  # it ended at trainer.max_time
                    unfinished.add(one.number)
        for one in batch:
            if one.number in unfinished:
                search.stop(one.number)
            else:
                self._tell(search, one.number, places[one.number])
            print(progress(search, one.number), flush=True)  # noqa: T201

    def _tell(self, search: Search, number: int, places: Sequence[Path]) -> None:
        for place in places:
            if (outcome := read_outcome(place, self.objectives)) is not None:
                return search.tell(number, outcome, place)
        return search.tell(number, Failed())

    def _own(self, search: Search, proposal: Proposal) -> Iterator[str]:
        """What a job of a search has beside the choices of its user."""
        yield cmdline.quoted("hydra.sweep.subdir", search.trial_folder(proposal.number).name)
        yield "objective_if_nan=null"
        if search.settings.pruner is not None:
            yield "+pruning=optuna"
            yield cmdline.quoted("callbacks.pruning.storage", search.storage)
            yield cmdline.quoted("callbacks.pruning.study_name", search.settings.study_name)
            yield f"callbacks.pruning.trial={proposal.number}"
            yield f"callbacks.pruning.pruner={search.settings.pruner}"
            yield f"callbacks.pruning.startup_trials={search.settings.pruner_startup_trials}"
            yield f"callbacks.pruning.warmup_steps={search.settings.pruner_warmup_steps}"


def _consecutive(batch: Sequence[Proposal]) -> list[list[Proposal]]:
    """Launchers count the jobs that they get from a first number."""
    blocks: list[list[Proposal]] = []
    for one in batch:
        if blocks and blocks[-1][-1].number == one.number - 1:
            blocks[-1].append(one)
        else:
            blocks.append([one])
    return blocks


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping) and not isinstance(node, DictConfig):
        return {key: _plain(value) for key, value in node.items()}
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node
