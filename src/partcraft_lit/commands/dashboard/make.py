"""Writes the specification of a dashboard, and sends it to W&B."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from partcraft_lit.commands.dashboard.collect import LoggedRun
from partcraft_lit.commands.dashboard.content import content_of
from partcraft_lit.commands.dashboard.settings import DashboardSettings
from partcraft_lit.commands.dashboard.workspace import report_of, workspace_of
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.progress import Stages
from partcraft_lit.loggers import has_wandb_key

#: In ``paths.logs``: under which ids W&B has the reports, so that one that is made again takes the place of the former.
_SAVED = Path("dashboard") / "reports.json"
#: In a specification for nobody's account.
_ANY_ENTITY = "ENTITY"


def make(
    settings: DashboardSettings, runs: Sequence[LoggedRun], folder: Path, stages: Stages, logger: Mapping[str, Any]
) -> dict[str, Any]:
    """``workspace.json`` and ``report.json`` in ``folder``; and, unless only that was asked for, both in W&B.

    Args:
        settings: of the command.
        runs: of one sweep or table.
        folder: of the command.
        stages: gets the addresses.
        logger: the configuration of W&B, where the runs have none.

    Returns:
        Where the specification is, and the addresses.

    Raises:
        UserError: if W&B refuses or cannot be reached.
    """
    content = content_of(runs, settings.parameters, settings.scores)
    project = settings.project or runs[0].logger_value("project") or str(logger.get("project", "partcraft-lit"))
    entity = settings.entity or runs[0].logger_value("entity") or logger.get("entity")
    send = settings.action == "make"
    if entity is None:
        entity = _default_entity() if send else _ANY_ENTITY
    workspace, report = workspace_of(content, entity, project), report_of(content, entity, project, online=send)
    _write(folder / "workspace.json", workspace)
    with _explained() if send else nullcontext():  # of a report whose project W&B is asked for
        _write(folder / "report.json", report)
    stages.log(f"{len(runs)} runs of {content.title}. Specification: {folder}")
    for name, reason in content.unfinished.items():
        stages.log(f"  without scores: {name}: {reason}")
    if not send:
        return {"folder": str(folder)}
    saved = settings.paths.logs.expanduser() / _SAVED
    addresses = _save(workspace, report, f"{entity}/{project}/{content.title}", saved)
    for name, address in addresses.items():
        stages.log(f"{name}: {address}")
    return {"folder": str(folder), **addresses}


def _write(path: Path, made: Any) -> None:
    """As W&B gets it; a workspace and a report have no public way to be written."""
    spec = made._to_model().spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    atomic_write(path, json.dumps(spec, indent=1, ensure_ascii=False) + "\n")


def _default_entity() -> str:
    import wandb

    with _explained():
        if entity := wandb.Api().default_entity:
            return str(entity)
    raise UserError("entity: your account has no default one; name it, entity=NAME.")


def _save(workspace: Any, report: Any, key: str, path: Path) -> dict[str, str]:
    ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    report.id = ids.get(key, "")
    with _explained():
        workspace.save()
        try:
            report.save()
        except Exception:
            if not report.id:
                raise
            report.id = ""  # the former one was deleted there
            report.save()
    atomic_write(path, json.dumps({**ids, key: report.id}, indent=1) + "\n")
    return {"workspace": str(workspace.url), "report": str(report.url)}


@contextmanager
def _explained() -> Iterator[None]:
    """What W&B prints stays out, and what it raises becomes one message."""
    if not has_wandb_key():
        raise UserError(
            "W&B: there is no API key. Log in with 'wandb login', or set WANDB_API_KEY; 'partcraft dashboard spec' "
            "writes the specification without."
        )
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    except Exception as error:  # whatever a server, the network or the client can come up with
        reason = " ".join((str(error) or type(error).__name__).split())[:300]
        raise UserError(
            f"W&B did not take the dashboard: {reason}. Check entity=, project=, the key and the network; "
            "'partcraft dashboard spec' writes the specification without."
        ) from error
