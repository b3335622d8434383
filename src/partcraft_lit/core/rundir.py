"""Run folders: which one a command works in, whether it is in use, whether it is finished.

A folder is ``<date_time>-<hash>``; the hash is that of the settings which decide what is trained. A run that was
interrupted is found again by it. A process that works in a folder holds a lock, which dies with the process, even by
kill -9; its forked children (loader workers outlive it by seconds) do not inherit it.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write, make_folder
from partcraft_lit.core.settings import expand_user

try:
    import fcntl
except ImportError:  # Windows has none: there, two processes in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

FINISHED = "finished.json"
LOCK = "run.lock"
_OF_EVERY_START = ("environment.json", "run.log", "logger_id.txt", "logger_identity.json", LOCK)
#: What does not change the trained result, or only its length, is not part of the hash, so that a run can be continued
#: with a longer training, other panels, another logger, more workers.
NOT_HASHED = (
    "paths",
    "download",
    "logger",
    "callbacks",
    "sample",
    "eval",
    "hardware",
    "metrics",
    "judges",
    "ckpt_path",
    "output_dir",
    "objective",
    "parts.save_masks",
    "objective_if_nan",
    "debug",
    "data.num_workers",
    "data.encode_batch_size",
    "prior.batch_size",
    "optim.total_steps",
    "trainer.max_steps",
    "trainer.max_epochs",
    "trainer.max_time",
    "trainer.log_every_n_steps",
    "trainer.enable_model_summary",
)
#: Keys that are younger than some runs, with the value that leaves everything as it was before them: with it they are
#: not part of the hash, so that those runs are found again, and a run without them has it.
YOUNGER: Mapping[str, Any] = {
    "data.crops": "cut",
    "loss_terms": {},
    "parts.corrections": "auto",
    "dataset.species_split": "all",
    "eval.held_out": 0,
}


def settings_hash(values: Mapping[str, Any], leave_out: Sequence[str] = NOT_HASHED) -> str:
    """Eight hex digits of plain, resolved values, without the keys in ``leave_out``; order of keys does not matter."""
    text = json.dumps(deciding_values(values, leave_out), sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def deciding_values(values: Mapping[str, Any], leave_out: Sequence[str] = NOT_HASHED) -> dict[str, Any]:
    """The values that ``settings_hash`` is of."""
    left_out = set(leave_out)
    if values.get("optim", {}).get("cooldown_steps"):  # it ends at the last step, so the length decides what is trained
        left_out.discard("optim.total_steps")
    return _without(values, "", frozenset(left_out))


def new_folder(root: Path, digest: str = "", now: datetime | None = None) -> Path:
    """Makes a folder, named by the time and the digest, that no other process has: two may start within a second."""
    make_folder(root)
    stem, end = (now or datetime.now()).strftime("%Y-%m-%d_%H-%M-%S"), f"-{digest}" if digest else ""
    for number in itertools.count(1):
        folder = root / (f"{stem}{end}" if number == 1 else f"{stem}.{number}{end}")
        with suppress(FileExistsError):
            folder.mkdir()
            break
    return folder


def discard_unused(folder: Path) -> None:
    """Removes the folder of a run that failed before it made anything."""
    files = {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()}
    if all(path.parts[0] == ".hydra" or str(path) in _OF_EVERY_START for path in files):
        shutil.rmtree(folder, ignore_errors=True)


def unfinished(root: Path, digest: str) -> Path | None:
    """The newest folder with this hash that is neither finished nor in use."""
    for folder in _newest_first(root, f"*-{digest}"):
        if not (folder / FINISHED).exists() and not in_use(folder):
            return folder
    return None


def find_run(run: str, root: Path) -> Path:
    """The folder that a user means: "latest", the name of a run, or a path.

    Raises:
        UserError: if there is none.
    """
    if run == "latest":
        runs = [folder for folder in _newest_first(root, "*") if (folder / ".hydra" / "config.yaml").is_file()]
        if not runs:
            raise UserError(
                f"run=latest: there is no run in {root}. Train one first (partcraft train), or name one: run=PATH."
            )
        return next((folder for folder in runs if (folder / FINISHED).exists()), runs[0]).resolve()
    try:
        given = expand_user(Path(run))
    except ValueError as error:
        raise UserError(f"run={run}: {error}.") from None
    for folder in (given, root / run):
        if (folder / ".hydra" / "config.yaml").is_file():
            return folder.resolve()
    if given.is_dir():
        raise UserError(f"run={run}: this folder is not a run: it has no .hydra/config.yaml.")
    known = ", ".join(folder.name for folder in _newest_first(root, "*")[:5]) or "none yet"
    raise UserError(f"run={run}: no such run. Newest in {root}: {known}.")


def mark_finished(folder: Path, **metadata: Any) -> None:
    """Says that nothing is left to do in ``folder``; a later start with the same settings begins a new run."""
    metadata = {"finished": datetime.now().isoformat(timespec="seconds"), **metadata}
    atomic_write(folder / FINISHED, json.dumps(metadata, indent=2, default=str))


def in_use(folder: Path) -> bool:
    """Whether a living process works in ``folder``."""
    lock = folder / LOCK
    if fcntl is None or not lock.exists():
        return False
    with lock.open("r", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds ``folder`` for this process.

    Raises:
        UserError: if another process has it.
    """
    make_folder(folder)
    # "a" creates without truncating. The file stays: removing it would let two processes lock two files of one name.
    with (folder / LOCK).open("a", encoding="utf-8") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(
                    f"Another process is working in {folder}. Wait for it, or start a new run with ckpt_path=null."
                ) from error
        _held.append(file)
        try:
            yield
        finally:
            _held.remove(file)


#: Locks of this process.
_held: list[IO[str]] = []


def _let_go() -> None:
    """In a forked child: the lock lasts until the last copy of the file is closed, so this copy is."""
    for file in _held:
        file.close()
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def saved_so_far(folder: Path) -> str:
    """Half a sentence on what a stopped run left behind."""
    found = [path for pattern in ("step=*.ckpt", "**/*.pt") for path in (folder / "checkpoints").glob(pattern)]
    checkpoints = sorted(found, key=lambda path: path.stat().st_mtime)
    if not checkpoints:
        return f"no checkpoint was written yet, and the same command continues in {folder} with what the store keeps"
    return f"the same command continues from {checkpoints[-1]}"


def with_younger(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a run, with the keys that came after it; those of a data set have a default in its code."""
    completed = dict(values)
    for name, value in YOUNGER.items():
        group, _, key = name.rpartition(".")
        if group != "dataset" and isinstance(completed.get(group), Mapping):
            completed[group] = {key: value, **completed[group]}
    return completed


def _newest_first(root: Path, pattern: str) -> list[Path]:
    return sorted((path for path in root.glob(pattern) if path.is_dir()), key=lambda path: path.name, reverse=True)


def _without(values: Mapping[str, Any], where: str, leave_out: frozenset[str]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{where}.{key}" if where else str(key)
        if name not in leave_out and not (name in YOUNGER and value == YOUNGER[name]):
            kept[str(key)] = _without(value, name, leave_out) if isinstance(value, Mapping) else value
    return kept
