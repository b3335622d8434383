"""Loggers of a run: all of them take the same, none of them can end it.

A logger here is a Lightning logger with two more methods, see :class:`RunLogger`. Lightning's own lack them, and do
without.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

from partcraft_lit.core.errors import UserError
from partcraft_lit.loggers.identity import RunIdentity, run_id

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger

    from partcraft_lit.loggers.mlflow import MlflowRunLogger
    from partcraft_lit.loggers.trackio import TrackioRunLogger
    from partcraft_lit.loggers.wandb import WandbRunLogger


def wandb_logger(
    folder: Path,
    identity: RunIdentity | None = None,
    *,
    project: str,
    mode: Literal["auto", "online", "offline"],
    entity: str | None = None,
    group: str | None = None,
    tags: tuple[str, ...] = (),
    artifacts: bool = False,
    init_timeout_s: float = 20.0,
    finish_timeout_s: float = 60.0,
    replay: bool = False,
) -> WandbRunLogger:
    """W&B, below ``folder``.

    Args:
        folder: the run folder; it keeps the id, so that a run which is continued goes on in the same panels.
        identity: what tells the run from others.
        project: W&B project.
        mode: "auto" is online where an API key is stored or in the environment, else offline.
        entity: user or team; None for the account's own.
        group: what a sweep's runs have in common; None for that of ``identity``.
        tags: labels of the run, beside those of ``identity``.
        artifacts: whether the adapter and the dictionary are kept as artifacts.
        init_timeout_s: a server that has not answered by then is done without.
        finish_timeout_s: for the upload of what is left when the run ends; the rest stays in ``folder``.
        replay: for a run that has ended: online or not at all.

    Raises:
        UserError: for a replay without an API key.
    """
    from partcraft_lit.loggers.wandb import WandbRunLogger

    identity = _labelled(identity or RunIdentity(name=folder.name), group, tags)
    offline = mode == "offline" or (mode == "auto" and not has_wandb_key())
    if replay and offline:
        raise UserError(
            "W&B: there is no API key, or logger.wandb.mode or WANDB_MODE is offline. Log in with 'wandb login', or "
            "set WANDB_API_KEY."
        )
    return WandbRunLogger(
        folder,
        run_id(folder),
        offline=offline,
        init_timeout_s=init_timeout_s,
        finish_timeout_s=finish_timeout_s,
        artifacts=artifacts,
        replay=replay,
        project=project,
        entity=entity,
        name=identity.name[:128],  # longer names are refused
        group=identity.group,
        job_type=identity.job_type,
        tags=[tag[:64] for tag in identity.tags],  # likewise
    )


def trackio_logger(
    folder: Path,
    identity: RunIdentity | None = None,
    *,
    project: str,
    group: str | None = None,
    tags: tuple[str, ...] = (),
    artifacts: bool = False,
    replay: bool = False,
) -> TrackioRunLogger:
    """trackio, in its local files, which ``trackio show`` reads; TRACKIO_DIR names another place for them.

    Args:
        folder: the run folder; it keeps the id.
        identity: what tells the run from others.
        project: of trackio.
        group: what a sweep's runs have in common; None for that of ``identity``.
        tags: labels of the run, beside those of ``identity``.
        artifacts: whether the adapter and the dictionary are kept as artifacts.
        replay: for a run that has ended.

    Raises:
        UserError: if trackio is not installed.
    """
    _require("trackio", "trackio")
    from partcraft_lit.loggers.trackio import TrackioRunLogger

    identity = _labelled(identity or RunIdentity(name=folder.name), group, tags)
    return TrackioRunLogger(folder, run_id(folder), identity, project=project, artifacts=artifacts, replay=replay)


def mlflow_logger(
    folder: Path,
    identity: RunIdentity | None = None,
    *,
    experiment: str,
    place: str,
    tracking_uri: str | None = None,
    group: str | None = None,
    tags: tuple[str, ...] = (),
    artifacts: bool = False,
    init_timeout_s: float = 20.0,
    finish_timeout_s: float = 60.0,
    replay: bool = False,
) -> MlflowRunLogger:
    """MLflow, on a server or in a local database.

    Args:
        folder: the run folder; it keeps the id.
        identity: what tells the run from others.
        experiment: of MLflow.
        place: folder of the local database and its files, where there is no server.
        tracking_uri: of a server; None for MLFLOW_TRACKING_URI, and without it for the local database.
        group: what a sweep's runs have in common; None for that of ``identity``.
        tags: labels of the run, beside those of ``identity``.
        artifacts: whether the adapter and the dictionary are kept as artifacts.
        init_timeout_s: a server that has not answered by then is done without.
        finish_timeout_s: for what is left when the run ends.
        replay: for a run that has ended.

    Raises:
        UserError: if MLflow is not installed.
    """
    _require("mlflow", "mlflow")
    from partcraft_lit.loggers.mlflow import MlflowRunLogger

    local = Path(place).expanduser().absolute()
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri is None:
        local.mkdir(parents=True, exist_ok=True)
    return MlflowRunLogger(
        folder,
        run_id(folder),
        _labelled(identity or RunIdentity(name=folder.name), group, tags),
        experiment=experiment,
        tracking_uri=uri or f"sqlite:///{local / 'mlflow.db'}",
        artifact_root=None if uri else (local / "files").as_uri(),
        init_timeout_s=init_timeout_s,
        finish_timeout_s=finish_timeout_s,
        artifacts=artifacts,
        replay=replay,
    )


def csv_logger(folder: Path) -> CSVLogger:
    """``csv/version_N/metrics.csv``, one version for each start: Lightning empties a version that it opens."""
    from lightning.pytorch.loggers import CSVLogger

    return CSVLogger(folder, name="csv")


def has_wandb_key() -> bool:
    """Whether W&B could log in without asking."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _labelled(identity: RunIdentity, group: str | None, tags: tuple[str, ...]) -> RunIdentity:
    """With the group and the tags that the configuration names."""
    chosen = tuple(dict.fromkeys([*identity.tags, *tags]))
    return dataclasses.replace(identity, group=group or identity.group, tags=chosen)


def _require(package: str, extra: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UserError(f"logger={package}: {package} is not installed. pip install 'partcraft-lit[{extra}]'")
