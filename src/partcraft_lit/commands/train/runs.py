"""Folders of runs: where a command works, and what it finds of the run that it is given."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.train.branches import branch_hash, named_checkpoint, parent_of, unfinished_branch
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.runs.corrections import with_corrections


def choose_run_folder(verb: str, values: Mapping[str, Any]) -> tuple[Path, str]:
    """Where a training command works, and what to tell the user about it.

    ``ckpt_path=auto`` continues the newest unfinished run with the same settings; a run folder given as ``ckpt_path``
    is continued whatever its settings were; a checkpoint given as ``ckpt_path`` begins a branch in a new folder, or
    continues the one that it began; anything else is a new folder.
    """
    given = values["ckpt_path"]
    root = Path(values["paths"]["logs"]).expanduser() / verb / "runs"
    digest = rundir.settings_hash(with_corrections(values))
    if given == "auto":
        if (folder := rundir.unfinished(root, digest)) is not None:
            return folder, f"Continuing the unfinished run {folder} (ckpt_path=null starts a new one)."
    elif (checkpoint := named_checkpoint(values)) is not None:
        if (folder := unfinished_branch(root, values, checkpoint)) is not None:
            return folder, f"Continuing the unfinished branch {folder} of {given}."
        folder = rundir.new_folder(root, branch_hash(values, checkpoint))
        return folder, f"Run folder: {folder}, a branch of {given}"
    elif given is not None:
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
    checkpoint = named_checkpoint(values)
    if checkpoint is not None and _has_own_checkpoint(values, checkpoint):
        return  # the parent's is not needed any more
    if not path.exists():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"ckpt_path={given}: there is no such file or folder. {near}".rstrip())
    if not path.is_dir():
        from partcraft_lit.callbacks.checkpoint import damage, holds_weights_alone

        if (reason := damage(path)) is not None:
            raise UserError(f"ckpt_path={given} cannot be continued: {reason}. Name a run, or another checkpoint.")
        if holds_weights_alone(path):
            raise UserError(
                f"ckpt_path={given} holds the weights alone, as the best ones are kept, without the state of the "
                "optimizer that training needs to go on. Name a step=....ckpt of the run's checkpoints/."
            )


def _has_own_checkpoint(values: Mapping[str, Any], checkpoint: Path) -> bool:
    """Whether the branch that this checkpoint began has come so far that it does without it."""
    root = Path(values["paths"]["logs"]).expanduser() / "train" / "runs"
    return any(
        not (folder / rundir.FINISHED).exists() and any((folder / "checkpoints").glob("step=*.ckpt"))
        for folder in root.glob(f"*-{branch_hash(values, checkpoint)}")  # also one that this process holds
    )


def resume_from(values: Mapping[str, Any], folder: Path) -> Path | None:
    """The checkpoint to continue from: the newest good one in the folder, else that from which it branches, if any.

    Raises:
        UserError: where a branch has neither.
    """
    if values["ckpt_path"] is None:
        return None
    from partcraft_lit.callbacks.checkpoint import damage, newest_good

    if (folder / "checkpoints").is_dir() and (own := newest_good(folder / "checkpoints")) is not None:
        return own
    checkpoint = named_checkpoint(values)
    if checkpoint is None and (parent := parent_of(folder)) is not None:
        checkpoint = Path(parent["checkpoint"])
    if checkpoint is not None and (reason := damage(checkpoint)) is not None:
        raise UserError(f"The branch {folder} has no checkpoint yet, and {checkpoint} cannot be continued: {reason}.")
    return checkpoint


def run_of(values: Mapping[str, Any]) -> Path:
    """Folder of the trained run that ``run`` names: a path, a folder's name, or "latest"."""
    return rundir.find_run(str(values["run"]), Path(values["paths"]["logs"]).expanduser() / "train" / "runs")


def folder_in_run(values: Mapping[str, Any], kind: str) -> Path:
    """``output_dir``, or a new dated folder for what is made from a run."""
    if values["output_dir"] is not None:
        return Path(values["output_dir"]).expanduser()
    return rundir.new_folder(run_of(values) / kind)
