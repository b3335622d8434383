"""``partcraft dashboard``: the W&B workspace and report of a sweep or table, and runs replayed into it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partcraft_lit.commands.dashboard.settings import DashboardSettings
from partcraft_lit.config import factories
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError

if TYPE_CHECKING:
    from partcraft_lit.commands.dashboard.collect import LoggedRun

#: Where a run goes: what it was told itself comes before what this command is told of all runs.
_OF_RUNS = ("project", "experiment", "entity", "group", "tags", "tracking_uri")


def check(values: Mapping[str, Any]) -> DashboardSettings:
    settings = factories.settings_of(DashboardSettings, values)
    _runs(settings)
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    if values["output_dir"] is not None:
        return Path(values["output_dir"]).expanduser(), ""
    root = Path(values["paths"]["logs"]).expanduser() / "dashboard" / "runs"
    return rundir.new_folder(root, rundir.settings_hash(values)), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)

    from partcraft_lit.core.progress import Stages

    runs, stages = _runs(settings), Stages()
    if settings.action == "sync":
        from partcraft_lit.commands.dashboard.sync import sync

        result: Any = sync(runs, lambda run: _loggers(values, settings, run), stages)
    else:
        if importlib.util.find_spec("wandb_workspaces") is None:
            raise UserError("The dashboard of W&B needs wandb-workspaces. pip install 'partcraft-lit[dashboards]'")
        from partcraft_lit.commands.dashboard.make import make

        result = make(settings, runs, folder, stages, (values.get("logger") or {}).get("wandb") or {})
    rundir.mark_finished(folder)
    return result


def _runs(settings: DashboardSettings) -> list[LoggedRun]:
    from partcraft_lit.commands.dashboard.collect import find_runs

    return find_runs(settings.runs, settings.group, settings.paths.logs.expanduser())


def _loggers(values: Mapping[str, Any], settings: DashboardSettings, run: LoggedRun) -> list[Any]:
    """The loggers that were chosen, told what the run's own were told."""
    nodes = {}
    for name, node in (values.get("logger") or {}).items():
        own = {key: run.logger_value(key, name) for key in _OF_RUNS if key in node}
        told = {"project": settings.project, "experiment": settings.project, "entity": settings.entity}
        changed = {key: value for key, value in told.items() if key in node and value is not None}
        nodes[name] = {**node, **{key: value for key, value in own.items() if value is not None}, **changed}
    return factories.make_loggers({**values, "logger": nodes}, run.folder, replay=run.identity)
