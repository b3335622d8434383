"""Branches: runs that start from a named checkpoint of another run, in a folder of their own.

The parent is only read. Its checkpoint, with step and digest, stands in the branch's ``environment.json``, so that the
same command, or the branch's folder as ``ckpt_path``, continues the branch and does not begin it again. Samples follow
from seed and step alone, so a branch sees the images and the noise that its parent saw, or would have seen.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.loggers.identity import FILE_NAME as LOGGER_ID
from partcraft_lit.runs.corrections import with_corrections


def named_checkpoint(values: Mapping[str, Any]) -> Path | None:
    """The file that ``ckpt_path`` names, absolute; it may be gone. None for anything but a file."""
    given = values["ckpt_path"]
    if given in (None, "auto"):
        return None
    path = Path(given).expanduser().absolute()
    return None if path.is_dir() or not (path.is_file() or path.suffix == ".ckpt") else path


def branch_hash(values: Mapping[str, Any], checkpoint: Path) -> str:
    """As the hash of settings in a run folder's name, and another for each checkpoint."""
    return rundir.settings_hash({**with_corrections(values), "branch_of": str(checkpoint)})


def unfinished_branch(root: Path, values: Mapping[str, Any], checkpoint: Path) -> Path | None:
    """The folder in which a branch of these settings can go on."""
    return rundir.unfinished(root, branch_hash(values, checkpoint))


def describe_parent(checkpoint: Path) -> dict[str, Any]:
    """What a branch keeps of where it comes from: checkpoint, step, SHA-256, and its run, as loggers call it."""
    from partcraft_lit.callbacks.checkpoint import manifest_of, step_of

    folder = checkpoint.parent.parent
    run = folder if (folder / ".hydra").is_dir() else None
    logged = folder / LOGGER_ID
    step = step_of(checkpoint)
    return {
        "checkpoint": str(checkpoint),
        "step": step if step >= 0 else None,
        "sha256": manifest_of(checkpoint, step)["sha256"],
        "run": None if run is None else str(run),
        "logger_id": logged.read_text(encoding="utf-8").strip() if logged.is_file() else None,
    }


def parent_of(folder: Path) -> dict[str, Any] | None:
    """Where the branch in a folder comes from; None if it is none."""
    try:
        parent = json.loads((folder / "environment.json").read_text(encoding="utf-8")).get("parent")
    except (OSError, ValueError, AttributeError):
        return None
    return parent if isinstance(parent, dict) and isinstance(parent.get("checkpoint"), str) else None


def check_own_folder(folder: Path, checkpoint: Path) -> None:
    """Raises a UserError where a branch would begin in the folder of another run, whose newer states it would lose."""
    parent = parent_of(folder)
    if any((folder / "checkpoints").glob("*.ckpt")) and (parent is None or parent["checkpoint"] != str(checkpoint)):
        raise UserError(
            f"hydra.run.dir={folder} has checkpoints of its own, and ckpt_path={checkpoint} begins a branch, which "
            f"needs another folder: leave hydra.run.dir out, or give a new one. ckpt_path={folder} continues that run."
        )
