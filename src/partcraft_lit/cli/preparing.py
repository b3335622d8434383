"""Before anything expensive: the configuration of every job is checked, and the folders are chosen."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from partcraft_lit.cli.ending import Progress
from partcraft_lit.core.errors import UserError

#: Verbs whose work several processes share, in one folder.
_SHARED_VERBS = ("discover", "train", "evaluate")
#: Verbs that read only some keys of the trainer.
_TRAINER_KEYS = {
    "discover": ("accelerator",),
    "generate": ("accelerator",),
    "export": ("accelerator",),
    "merge": ("accelerator",),
    "evaluate": ("accelerator", "devices", "num_nodes", "strategy"),
}


def prepare(
    verb: str, module: ModuleType, overrides: list[str], args: argparse.Namespace, progress: Progress
) -> list[str]:
    """Checks the configuration of every job before the first starts; says in which folder a single job works."""
    from partcraft_lit.config import cmdline, machine
    from partcraft_lit.config import compose as config
    from partcraft_lit.core import files

    for text in overrides:
        if not args.multirun and text.startswith("hydra/sweeper="):
            raise UserError(f"{text}: this is one run. A search or a sweep goes with -m.")
    if args.multirun:
        return _prepare_sweep(verb, module, overrides, args, progress)
    _check_trainer_keys(verb, overrides)
    values = config.plain(config.compose(verb, overrides))
    module.check(values)
    if verb == "train":
        machine.check_start(values, args.overrides)
    print_notes(args.overrides)
    for text in overrides:
        key, _, place = text.lstrip("+").partition("=")
        if key == "hydra.run.dir":
            if "${" not in place:
                files.make_folder(Path(place.strip("'\"")))
            return []
    if verb in _SHARED_VERBS:
        _check_shared(values)
    folder, message = module.choose_folder(values)
    files.make_folder(folder)
    progress.made = None if any(folder.iterdir()) else folder.absolute()
    if message:
        print(message, flush=True)
    return [cmdline.quoted("hydra.run.dir", str(folder))]


def _prepare_search(verb: str, plan: Any, values: Mapping[str, Any], overrides: list[str]) -> tuple[Path, list[str]]:
    """Checks a search; names the folder of one that was begun before, else a new one."""
    from partcraft_lit.config import cmdline, plugins, search
    from partcraft_lit.config import compose as config

    if verb != "train":
        raise UserError(f"hydra/sweeper=optuna searches over training runs: partcraft train, not {verb}.")
    search.check_plan(plan, values, config.hydra_values(verb, plan.points[0], "launcher"))
    plugins.register(search.OptunaSweeper)
    folder, begun = search.choose_folder(plan, verb, overrides)
    print(f"{'Continuing the search in' if begun else 'Search folder:'} {folder}", flush=True)
    return folder, [cmdline.quoted("hydra.sweep.dir", str(folder))]


def _check_shared(values: Mapping[str, Any]) -> None:
    """Processes that somebody else starts have to be told in which folder they work together."""
    from partcraft_lit.core import environment

    _, processes = environment.position()
    machines = int(values["trainer"]["num_nodes"])
    if processes > 1 or machines > 1:
        which = f"processes of a run on {machines} machines" if machines > 1 else f"{processes} processes of a run"
        raise UserError(
            f"This is one of the {which}, as RANK, LOCAL_RANK, SLURM_PROCID or trainer.num_nodes says, and each would "
            "choose a folder of its own. Name one that they share: hydra.run.dir=FOLDER."
        )


def _prepare_sweep(
    verb: str, module: ModuleType, overrides: list[str], args: argparse.Namespace, progress: Progress
) -> list[str]:
    """Checks jobs of a sweep; says in which folder it works: that of an earlier one which was asked for the same."""
    from partcraft_lit.config import cmdline, launchers, machine, plugins, search, sources
    from partcraft_lit.config import compose as config
    from partcraft_lit.config.loader import SharedLoader

    plugins.register(launchers.PoolLauncher, launchers.SlurmLauncher)
    plan = search.plan_of(verb, overrides)
    points = list(cmdline.sweep_points(verb, overrides)) if plan is None else plan.points
    own = launchers.is_own(config.hydra_values(verb, points[0], "launcher"))
    values: dict[str, Any] = {}
    loader = SharedLoader(sources.loader(verb))
    for point in points:
        values = config.plain(config.compose(verb, point, loader))
        module.check(values)
        if verb == "train":
            machine.check_start(values, args.overrides)
            if not own:
                _check_sweep(values)
    if plan is not None:
        progress.sweep, command = _prepare_search(verb, plan, values, overrides)
        return command
    if not own:
        return []
    if any(text.startswith("hydra.sweep.dir=") for text in overrides):
        progress.sweep = Path(config.hydra_values(verb, points[0], "sweep.dir"))
        return []
    anew = values.get("ckpt_path", "auto") is None
    folder, known = launchers.sweep_folder(verb, overrides, Path(values["paths"]["logs"]).expanduser(), anew)
    print(f"Continuing the sweep {folder}" if known else f"Sweep: {folder}", flush=True)
    progress.sweep = folder
    return [cmdline.quoted("hydra.sweep.dir", str(folder))]


def _check_trainer_keys(verb: str, overrides: Sequence[str]) -> None:
    """Raises a UserError for a key of the trainer that would be accepted and not read."""
    read = _TRAINER_KEYS.get(verb)
    for text in overrides:
        group, _, key = text.lstrip("+").partition("=")[0].partition(".")
        if read is not None and group == "trainer" and key and key not in read:
            names = ", ".join(f"trainer.{name}" for name in read)
            raise UserError(
                f"{text}: {verb} does not read this; of the trainer it reads {names}. Precision is that of the run."
            )


def print_notes(overrides: Sequence[str]) -> None:
    """Prints what was chosen for this machine, but for what the command line chose itself."""
    from partcraft_lit.config import machine

    given = [text.lstrip("+").partition("=")[0] for text in overrides if not text.endswith("=auto")]
    for note in machine.take_notes():
        if not any(f"so {key}=" in note for key in given):
            print(note, flush=True)


def _check_sweep(values: Mapping[str, Any]) -> None:
    """Lightning starts further processes with the command line it finds, and that of a sweep starts the sweep again."""
    from partcraft_lit.core import environment

    processes = environment.trainer_processes(values["trainer"])
    if processes > 1:
        raise UserError(
            f"This launcher trains the jobs of a sweep in processes of its own, and here a job would take {processes}. "
            "Leave hydra/launcher out, so that every job is a command of its own, or add trainer.devices=1."
        )
