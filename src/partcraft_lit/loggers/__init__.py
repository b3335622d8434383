"""Loggers of a run: all of them take the same, none of them can end it.

A logger here is a Lightning logger with two more methods, see :class:`RunLogger`. Lightning's own lack them, and do
without.
"""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

from partcraft_lit.loggers.identity import RunIdentity

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger

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
    init_timeout_s: float = 20.0,
    finish_timeout_s: float = 60.0,
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
        init_timeout_s: a server that has not answered by then is done without.
        finish_timeout_s: for the upload of what is left when the run ends; the rest stays in ``folder``.
    """
    from partcraft_lit.loggers.identity import run_id
    from partcraft_lit.loggers.wandb import WandbRunLogger

    identity = identity or RunIdentity(name=folder.name)
    offline = mode == "offline" or (mode == "auto" and not has_wandb_key())
    return WandbRunLogger(
        folder,
        run_id(folder),
        offline=offline,
        init_timeout_s=init_timeout_s,
        finish_timeout_s=finish_timeout_s,
        project=project,
        entity=entity,
        name=identity.name[:128],  # longer names are refused
        group=group or identity.group,
        job_type=identity.job_type,
        tags=[tag[:64] for tag in dict.fromkeys([*identity.tags, *tags])],  # likewise
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
