"""Hydra's launchers of this package: every job of a sweep is a command of its own, in a pool or on SLURM.

A sweep has a ledger in its folder. A job is known by the hash of its whole configuration, so the same command again
runs what is missing, failed or changed, and takes the values of the others from their results.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import Container, DictConfig, OmegaConf, open_dict

from partcraft_lit.config import cmdline, plugins, sources
from partcraft_lit.config import compose as config
from partcraft_lit.config.loader import SharedLoader
from partcraft_lit.config.validation import validate
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import locked, make_folder
from partcraft_lit.core.stopping import SCHEDULED_VARIABLE, TIME_LIMIT_CODE
from partcraft_lit.loggers.identity import grouped
from partcraft_lit.scheduling import results
from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.schedule import run_tasks
from partcraft_lit.scheduling.settings import PoolSettings, SlurmSettings
from partcraft_lit.scheduling.slurm import check_slurm
from partcraft_lit.scheduling.tasks import LOG, JobFailed, Outcome, Step, Task, python_command

#: Unlike that of a run which is continued, the result of a job is that of one length, and its scores are part of it.
NOT_HASHED = tuple(
    key
    for key in rundir.NOT_HASHED
    if key
    not in ("eval", "sample", "metrics", "judges", "trainer.max_steps", "trainer.max_epochs", "optim.total_steps")
)
#: Settings of Hydra that a job does not inherit from its sweep.
_OF_SWEEPS = (
    "hydra.sweep",
    "hydra.sweeper",
    "hydra.launcher",
    "hydra.mode",
    "hydra.run",
    "hydra/launcher",
    "hydra/sweeper",
)


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        key: hash of its configuration.
        name: what sets it apart from the others.
        folder: where it works.
        overrides: all of them.
        objective: what a sweeper is told.
        gpus: how many it takes; 0 if it names them itself.
    """

    key: str
    name: str
    folder: Path
    overrides: tuple[str, ...]
    objective: results.Objective
    gpus: int


@dataclass
class Sweep:
    """What the launcher of this process has run.

    Attributes:
        folder: of the sweep.
        jobs: key -> job, in the order in which they came.
        outcome: of all of them.
        searched: whether a sweeper chooses the jobs one after another; it writes the results itself.
        swept: keys that it varies.
    """

    folder: Path
    searched: bool
    swept: set[str]
    jobs: dict[str, Job] = field(default_factory=dict)
    outcome: Outcome = field(default_factory=Outcome)


_sweeps: list[Sweep] = []


def take_sweep() -> Sweep | None:
    """What has been launched since the last call; None if nothing was."""
    sweep = _sweeps[-1] if _sweeps else None
    _sweeps.clear()
    return sweep


def finish_sweep(sweep: Sweep) -> int:
    """Writes the results of a sweep beside its jobs, and says which failed or are to go on.

    Returns:
        Exit code: 1 if a job ended with an unexpected error, 2 if jobs failed otherwise; for jobs that ended at
        ``trainer.max_time`` that of a run which did: 0, or where a scheduler has to know ``TIME_LIMIT_CODE``.
    """
    from partcraft_lit.report.sweep import SweepJob, write_sweep

    ledger = Ledger(sweep.folder)
    entries = [entry for key, entry in ledger.latest().items() if key in sweep.jobs]
    objective = next((job.objective for job in sweep.jobs.values()), None)
    jobs = [
        SweepJob(
            name=entry.name,
            folder=entry.folder,
            status=entry.status,
            parameters=entry.parameters,
            scores=results.scores_of(ledger.absolute(entry.folder)),
            seconds=entry.seconds,
        )
        for entry in entries
    ]
    if not sweep.searched and any(job.scores for job in jobs):
        write_sweep(sweep.folder, jobs, objective[0] if isinstance(objective, list) else objective)
        _log(f"Results: {sweep.folder / 'sweep.md'}, sweep.csv and sweep.png beside it")
    failed = [entry for entry in entries if entry.name in sweep.outcome.failed]
    for entry in failed:
        _log(f"FAILED {entry.name}: {sweep.outcome.failed[entry.name]}")
        _log(f"    {ledger.absolute(entry.folder) / LOG}")
    stopped = [entry for entry in entries if entry.name in sweep.outcome.stopped]
    for entry in stopped:
        _log(f"STOPPED {entry.name}: {sweep.outcome.stopped[entry.name].removeprefix('partcraft: ')}")
    if stopped:
        _log(
            f"partcraft: {len(stopped)} of {len(sweep.jobs)} jobs ended at trainer.max_time, with a checkpoint. The "
            "same command continues them."
        )
    if failed:
        _log(f"partcraft: {len(failed)} of {len(sweep.jobs)} jobs failed. The same command tries them again.")
        return 1 if any(entry.code == 1 for entry in failed) else 2
    return TIME_LIMIT_CODE if stopped and SCHEDULED_VARIABLE in os.environ else 0


class _JobLauncher(Launcher):
    """Turns overrides into tasks, and their results into what Hydra's sweepers expect."""

    def __init__(self, **settings: Any) -> None:
        self._given = {k: OmegaConf.to_container(v) if isinstance(v, Container) else v for k, v in settings.items()}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        # The sweeper composes every job before the first starts, to check it, and so does ``launch``.
        hydra_context.config_loader = SharedLoader(hydra_context.config_loader)
        self._context, self._config = hydra_context, config
        self._settings = self._checked()

    @abstractmethod
    def _checked(self) -> PoolSettings | SlurmSettings:
        """Settings of the launcher.

        Raises:
            UserError: for what this machine cannot do.
        """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs jobs; one that fails does not raise, its ``JobReturn`` does when it is asked for its value."""
        sweep = self._sweep()
        ledger = Ledger(sweep.folder)
        composed = [self._compose(overrides, initial_job_idx + i) for i, overrides in enumerate(job_overrides)]
        names = _names(job_overrides, sweep.swept)
        known = {entry.key: entry.folder for entry in ledger.latest().values()}
        jobs = []
        for cfg, overrides, name in zip(composed, job_overrides, names, strict=True):
            jobs.append(self._job(ledger, known, cfg, overrides, name))
            known[jobs[-1].key] = ledger.relative(jobs[-1].folder)
        unique = {job.key: job for job in jobs}
        sweep.jobs |= unique
        with grouped(f"sweep {sweep.folder.name}"):
            tasks = [self._task(job, sweep) for job in unique.values()]
            if not all(task.is_done() for task in tasks):
                _log(f"Each job writes to {LOG} in its folder, below {sweep.folder}")
            outcome = run_tasks(tasks, self._settings, _log, ledger, _gpus_each(jobs))
        sweep.outcome = Outcome(
            {**sweep.outcome.failed, **outcome.failed},
            {**sweep.outcome.stopped, **outcome.stopped},
            {**sweep.outcome.pending, **outcome.pending},
        )
        return [_returned(job, cfg, outcome) for job, cfg in zip(jobs, composed, strict=True)]

    def _sweep(self) -> Sweep:
        folder = Path(str(self._config.hydra.sweep.dir)).absolute()
        if not _sweeps or _sweeps[-1].folder != folder:
            searched = not str(self._config.hydra.sweeper.get("_target_", "")).endswith(".BasicSweeper")
            _sweeps.append(Sweep(folder, searched, swept_keys(self._config)))
        return _sweeps[-1]

    def _compose(self, overrides: Sequence[str], number: int) -> DictConfig:
        """The configuration of a job, Hydra's part included."""
        cfg = self._context.config_loader.load_sweep_config(self._config, list(overrides))
        with open_dict(cfg):
            cfg.hydra.job.id = str(number)
            cfg.hydra.job.num = number
        return cfg

    def _job(
        self, ledger: Ledger, known: Mapping[str, str], cfg: DictConfig, overrides: Sequence[str], name: str
    ) -> Job:
        """A job in the folder that it had before, else in one that no other has; ``known``: key -> folder."""
        values = _values(cfg)
        if values.get("trainer", {}).get("num_nodes", 1) > 1:
            raise UserError(
                "A job of a sweep works on one machine, and trainer.num_nodes asks for more: submit such runs one by "
                "one, sbatch --nodes=2 docs/slurm/train.sbatch loss.lambda_attn=0.1 and so on; docs/scaling.md has "
                "the loop."
            )
        key = rundir.settings_hash({"verb": str(cfg.hydra.job.name), **values}, NOT_HASHED)
        subdir = known.get(key, str(cfg.hydra.sweep.subdir))
        if key not in known and subdir in known.values():  # it has the result of other settings
            subdir = f"{subdir}-{key}"
        gpus = environment.gpus_of_job(values.get("trainer", {}))
        return Job(key, name, ledger.absolute(subdir), tuple(overrides), values.get("objective"), gpus)

    def _task(self, job: Job, sweep: Sweep) -> Task:
        hydra = self._config.hydra
        kept = [text for text in hydra.overrides.hydra if not text.lstrip("+~").startswith(_OF_SWEEPS)]
        # A sweep that is new has new jobs; one that is continued goes on with them.
        own = [text for text in job.overrides if text != "ckpt_path=null"]
        command = python_command(
            str(hydra.job.name), *_options(hydra), *own, *kept, cmdline.quoted("hydra.run.dir", str(job.folder))
        )
        step = Step(command, _Done(job.folder, job.key, job.objective))
        variables = {results.KEY_VARIABLE: job.key, results.SWEEP_VARIABLE: str(sweep.folder)}
        parameters = {key: value for key, value in parameters_of(job.overrides).items() if key in sweep.swept}
        return Task(job.name, job.folder, (step,), job.key, parameters or parameters_of(job.overrides), variables)


class PoolLauncher(_JobLauncher):
    """``hydra/launcher=pool``: processes on this machine."""

    __module__ = plugins.PACKAGE

    def _checked(self) -> PoolSettings:
        return validate(self._given, PoolSettings, "hydra.launcher")


class SlurmLauncher(_JobLauncher):
    """``hydra/launcher=slurm``: jobs of a cluster."""

    __module__ = plugins.PACKAGE

    def _checked(self) -> SlurmSettings:
        settings: SlurmSettings = validate(self._given, SlurmSettings, "hydra.launcher")
        check_slurm()
        return settings


@dataclass(frozen=True)
class _Done:
    """Whether a job is done; an object of a module, so that it can be sent to a cluster."""

    folder: Path
    key: str
    objective: results.Objective

    def __call__(self) -> bool:
        return results.is_done(self.folder, self.key, self.objective)


def is_own(node: Mapping[str, Any]) -> bool:
    """Whether a launcher starts jobs as commands of their own."""
    return str(node.get("_target_", "")).startswith(f"{plugins.PACKAGE}.")


def parameters_of(overrides: Sequence[str]) -> dict[str, str]:
    """Key -> value as it was written."""
    return {key.lstrip("+~"): value for key, _, value in (text.partition("=") for text in overrides)}


def sweep_folder(verb: str, overrides: Sequence[str], logs: Path, anew: bool) -> tuple[Path, bool]:
    """The folder of the newest sweep that was asked for the same, else a new one.

    Args:
        verb: that sweeps.
        overrides: as they were given; those that do not change results do not count.
        logs: root of run folders.
        anew: whether a new one is wanted anyway.

    Returns:
        The folder, and whether it was there.
    """
    root = logs / verb / "multiruns"
    asked = sorted(text for text in overrides if not _is_ignored(text.lstrip("+~").partition("=")[0]))
    digest = rundir.settings_hash({"verb": verb, "asked": asked}, ())
    make_folder(root)
    with locked(root / ".sweeps.lock"):  # of two that are started at once, the second finds the folder of the first
        found = sorted(root.glob(f"*-{digest}"), key=lambda path: path.name)
        if found and not anew:
            return found[-1], True
        return rundir.new_folder(root, digest), False


def _is_ignored(key: str) -> bool:
    names = (*NOT_HASHED, "hydra.launcher", "hydra.verbose", "hydra.job_logging", "hydra.hydra_logging")
    return key == "hydra/launcher" or any(key == name or key.startswith(f"{name}.") for name in names)


def swept_keys(cfg: DictConfig) -> set[str]:
    """Keys that the sweep was asked to vary."""
    parsed = OverridesParser.create().parse_overrides(list(cfg.hydra.overrides.task))
    searched = cfg.hydra.sweeper.get("params") or {}
    return {o.key_or_group for o in parsed if o.is_sweep_override()} | {str(key).lstrip("+~") for key in searched}


def _names(job_overrides: Sequence[Sequence[str]], swept: set[str]) -> list[str]:
    """What sets each job apart: its values of the keys that are swept."""
    shown = [[text for text in o if text.lstrip("+~").partition("=")[0] in swept] for o in job_overrides]
    return [" ".join(texts or overrides) for texts, overrides in zip(shown, job_overrides, strict=True)]


def _gpus_each(jobs: Sequence[Job]) -> int:
    """GPUs of one slot; 0 if a job names its own."""
    wanted = [job.gpus for job in jobs]
    return 0 if 0 in wanted else max(wanted)


def _values(cfg: DictConfig) -> dict[str, Any]:
    return config.plain(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]))


def _options(hydra: DictConfig) -> list[str]:
    """Options of the command line that say where configurations are."""
    places = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    options = [f"--config-dir={place}" for place in places]
    main = next((source.path for source in hydra.runtime.config_sources if source.provider == "main"), None)
    if main is not None and Path(main) != sources.conf_dir():
        options.append(f"--config-path={main}")
    if hydra.job.config_name not in (None, hydra.job.name):
        options.append(f"--config-name={hydra.job.config_name}")
    return options


def _returned(job: Job, cfg: DictConfig, outcome: Outcome) -> JobReturn:
    """What a sweeper is told of a job."""
    given = JobReturn(
        overrides=list(job.overrides),
        cfg=OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]),
        hydra_cfg=OmegaConf.masked_copy(cfg, ["hydra"]),
        working_dir=str(job.folder),
        task_name=str(cfg.hydra.job.name),
    )
    if job.name in outcome.failed:
        given.status, given.return_value = JobStatus.FAILED, JobFailed(outcome.failed[job.name])
    elif job.name in outcome.pending or job.name in outcome.stopped:
        given.status, given.return_value = JobStatus.COMPLETED, None
    else:
        result = results.read_result(job.folder)
        given.status, given.return_value = JobStatus.COMPLETED, result.value if result is not None else None
    return given


def _log(text: str) -> None:
    print(text, flush=True)  # noqa: T201
