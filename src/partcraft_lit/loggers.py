"""Lightning's loggers, with what a run needs set: they write into its folder, stay quiet and never ask."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlparse

if TYPE_CHECKING:
    from lightning.pytorch.loggers import CSVLogger, WandbLogger


def wandb_logger(
    folder: Path,
    *,
    project: str,
    mode: Literal["auto", "online", "offline"],
    entity: str | None = None,
    group: str | None = None,
    tags: tuple[str, ...] = (),
) -> WandbLogger:
    """W&B, below ``folder``.

    Args:
        folder: the run folder; its name is the id of the run, so that a continued run goes on in the same panels.
        project: W&B project.
        mode: "auto" is online where an API key is stored or in the environment, else offline.
        entity: user or team; None for the account's own.
        group: what a sweep's runs have in common.
        tags: labels of the run.
    """
    from lightning.pytorch.loggers import WandbLogger
    from wandb import Settings

    offline = mode == "offline" or (mode == "auto" and not has_wandb_key())
    logger = WandbLogger(
        name=folder.name,
        id=folder.name,
        project=project,
        entity=entity,
        group=group,
        tags=list(tags),
        save_dir=folder,
        dir=folder,
        offline=offline,
        settings=Settings(silent=True, console="off"),
    )
    logger._wandb_init.pop("anonymous", None)  # W&B warns of it, though nobody has set it
    return logger


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
