"""Folders of runs: where a command works, and what it finds of the run that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.runs.corrections import with_corrections


def choose_run_folder(verb: str, values: Mapping[str, Any]) -> tuple[Path, str]:
    """Where a training command works, and what to tell the user about it.

    ``ckpt_path=auto`` continues the newest unfinished run with the same settings; a run folder given as ``ckpt_path``
    is continued whatever its settings were; anything else is a new folder.
    """
    given = values["ckpt_path"]
    root = Path(values["paths"]["logs"]).expanduser() / verb / "runs"
    digest = rundir.settings_hash(with_corrections(values))
    if given == "auto":
        if (folder := rundir.unfinished(root, digest)) is not None:
            return folder, f"Continuing the unfinished run {folder} (ckpt_path=null starts a new one)."
    elif given is not None and Path(given).is_dir():
        return Path(given), f"Continuing the run {given}."
    folder = rundir.new_folder(root, digest)
    return folder, f"Run folder: {folder}"


def check_ckpt_path(values: Mapping[str, Any]) -> None:
    """Raises a UserError unless ``ckpt_path`` is auto, null, a run folder or a checkpoint that can be loaded."""
    given = values["ckpt_path"]
    if given in (None, "auto"):
        return
    if not isinstance(given, str):
        raise UserError(f"ckpt_path={given!r}: wanted auto, null, a run folder or a checkpoint file.")
    path = Path(given).expanduser()
    if path.is_dir() and not (path / "checkpoints").is_dir():
        raise UserError(f"ckpt_path={given}: this folder is not a run: it has no checkpoints/.")
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"ckpt_path={given}: there is no such file or folder. {near}".rstrip())
    if not path.is_dir():
        from partcraft_lit.callbacks.checkpoint import damage

        if (reason := damage(path)) is not None:
            raise UserError(f"ckpt_path={given} cannot be continued: {reason}. Name a run, or another checkpoint.")


def resume_from(values: Mapping[str, Any], folder: Path) -> Path | None:
    """The checkpoint to continue from: the one that was named, else the newest good one in the folder."""
    given = values["ckpt_path"]
    if given not in (None, "auto") and Path(given).is_file():
        return Path(given)
    if given is None or not (folder / "checkpoints").is_dir():
        return None
    from partcraft_lit.callbacks.checkpoint import newest_good

    return newest_good(folder / "checkpoints")


def run_of(values: Mapping[str, Any]) -> Path:
    """Folder of the trained run that ``run`` names: a path, a folder's name, or "latest"."""
    return rundir.find_run(str(values["run"]), Path(values["paths"]["logs"]).expanduser() / "train" / "runs")


def folder_in_run(values: Mapping[str, Any], kind: str) -> Path:
    """``output_dir``, or a new dated folder for what is made from a run."""
    if values["output_dir"] is not None:
        return Path(values["output_dir"]).expanduser()
    return rundir.new_folder(run_of(values) / kind)
