"""Checkpoints that are either whole or not there."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from pydantic import Field

from partcraft_lit.callbacks.binding import TrainingRun
from partcraft_lit.callbacks.hooks import EveryNSteps
from partcraft_lit.core.files import atomic_path, atomic_write
from partcraft_lit.core.finite import first_nonfinite
from partcraft_lit.core.settings import Positive

_NAME = re.compile(r"step=(\d+)\.ckpt")
_log = logging.getLogger(__name__)


class Checkpoints(Checkpoint):
    """Writes ``step=001400.ckpt`` every N optimizer steps and after the last one, and keeps the newest few.

    A checkpoint is written under a temporary name, flushed to the disk, measured, and only then renamed; its size and
    SHA-256 stand in ``step=001400.ckpt.json`` before that. So whatever happens, a file of that name either agrees with
    its manifest or is passed over by :func:`newest_good`. ``last.ckpt`` is a copy of the newest, for people and other
    tools, with a manifest of its own. Weights that are not finite are never written, so they evict no good checkpoint.

    Args:
        every_n_steps: optimizer steps between checkpoints.
        keep: how many to keep, at least 2, so that a damaged one has a predecessor.
    """

    def __init__(self, every_n_steps: Positive, keep: Annotated[int, Field(ge=2)] = 2) -> None:
        self.keep = keep
        self._trigger = EveryNSteps(every_n_steps)
        self._saved = -1

    def bind(self, run: TrainingRun) -> None:
        self.folder = run.folder / "checkpoints"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trigger.start(trainer.global_step)
        self._saved = -1
        if trainer.is_global_zero:
            remove_temporary(self.folder)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Lightning's loops take up a state that was saved in this hook, and only in this one, at the next batch.
        step = trainer.global_step
        due = self._trigger.fires(step)
        last = trainer.should_stop or 0 < trainer.max_steps <= step
        if step != self._saved and (due or last):
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path | None:
        """Saves now, unless the weights are not finite; every process has to call it."""
        step = trainer.global_step
        if name := first_nonfinite(trainer.lightning_module.state_dict()):
            rank_zero_warn(f"No checkpoint is written at step {step}: the weights are not finite ({name}).")
            return None
        path = self.folder / f"step={step:06d}.ckpt"
        self._saved = step
        if not trainer.is_global_zero:
            trainer.save_checkpoint(path, weights_only=False)  # collective; only process 0 writes
            return path
        with atomic_path(path) as temporary:
            trainer.save_checkpoint(temporary, weights_only=False)
            atomic_write(manifest_path(path), json.dumps(manifest_of(temporary, step), indent=1) + "\n")
        last = self.folder / "last.ckpt"
        with atomic_path(last) as temporary:
            shutil.copyfile(path, temporary)  # a hard link would share the damage of the newest
            shutil.copyfile(manifest_path(path), manifest_path(last))
        self._prune()
        return path

    def _prune(self) -> None:
        for path in _numbered(self.folder)[self.keep :]:
            path.unlink(missing_ok=True)
            manifest_path(path).unlink(missing_ok=True)


def newest_good(folder: Path | str, log: Callable[[str], None] = _log.warning) -> Path | None:
    """The checkpoint with most steps that is whole, or None.

    Args:
        folder: where checkpoints are; it may be missing.
        log: called with every checkpoint that was passed over, the reason, and what was taken instead.
    """
    skipped = False
    for path in _candidates(Path(folder)):
        reason = damage(path)
        if reason is None:
            if skipped:
                log(f"The newest checkpoint that can be read is taken: {path}.")
            return path
        skipped = True
        log(f"Checkpoint {path} is passed over: {reason}.")
    if skipped:
        log(f"No checkpoint in {folder} can be read.")
    return None


def remove_temporary(folder: Path) -> None:
    """Removes what killed runs have left below ``folder`` of checkpoints that were never finished."""
    for path in folder.rglob(".*.tmp.ckpt"):
        path.unlink(missing_ok=True)


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None: its bytes are those of its manifest, it loads, and it is finite."""
    if not path.is_file():
        return "it is not a file"
    if not manifest_path(path).exists():
        return _loading_error(path)
    try:
        manifest = json.loads(manifest_path(path).read_text(encoding="utf-8"))
        size, digest = int(manifest["bytes"]), str(manifest["sha256"])
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"its manifest cannot be read ({type(error).__name__}: {error})"
    if path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes instead of {size}"
    if _sha256(path) != digest:
        return "its bytes are not those that were written (SHA-256 differs)"
    return _loading_error(path)


def holds_weights_alone(path: Path) -> bool:
    """Whether a good checkpoint lacks the optimizer's state, so that it can be used but not trained further."""
    return not torch.load(path, map_location="cpu", weights_only=True, mmap=True).get("optimizer_states")


def manifest_of(path: Path, step: int) -> dict[str, Any]:
    """What tells a whole checkpoint from a damaged one."""
    return {"step": step, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def manifest_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _candidates(folder: Path) -> list[Path]:
    """Checkpoints, most steps first, numbered before others; then those of unknown steps, newest first.

    ``last.ckpt`` comes right behind the numbered one that it is a copy of. Hidden temporary files are none.
    """
    if not folder.is_dir():
        return []
    visible = [path for path in folder.glob("*.ckpt") if not path.name.startswith(".")]
    return sorted(visible, key=lambda p: (step_of(p), bool(_NAME.fullmatch(p.name)), p.stat().st_mtime), reverse=True)


def step_of(path: Path) -> int:
    """Steps of a checkpoint by its name, else by its manifest; -1 if neither says."""
    if match := _NAME.fullmatch(path.name):
        return int(match.group(1))
    try:
        return int(json.loads(manifest_path(path).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _numbered(folder: Path) -> list[Path]:
    steps = {path: match for path in folder.glob("step=*.ckpt") if (match := _NAME.fullmatch(path.name))}
    return sorted(steps, key=lambda path: int(steps[path].group(1)), reverse=True)


def _loading_error(path: Path) -> str | None:
    if not zipfile.is_zipfile(path):
        return "it is not a file that torch.save has written, or only a part of one"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)  # reads only what is looked at
    except pickle.UnpicklingError:
        return "it holds other things than tensors and plain values, and is not loaded since they could run code"
    except Exception as error:  # torch.load raises nearly anything on damaged bytes
        first_line = str(error).split("\n", maxsplit=1)[0]
        return f"it cannot be loaded ({type(error).__name__}: {first_line})"
    if not isinstance(content, dict) or not {"global_step", "state_dict"} <= content.keys():
        return "it is no checkpoint of a training run: global_step or state_dict is missing"
    if not isinstance(content["state_dict"], dict):
        return "its state_dict is not a dictionary"
    if others := [name for name, value in content["state_dict"].items() if not isinstance(value, torch.Tensor)]:
        return f"its state_dict holds other things than tensors ({others[0]})"
    name = first_nonfinite(content["state_dict"])
    return None if name is None else f"its weights are not finite ({name})"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
