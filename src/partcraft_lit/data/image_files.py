"""Image files of a folder: each decoded once before any work, with labels, hashes and a list of what is left out."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.images import (
    READER_VERSION,
    UnreadableImage,
    decode_image,
    decoding_rules,
    image_size,
    read_image,
    readable_extensions,
)
from partcraft_lit.core.store import Store, stable_hash

logger = logging.getLogger(__name__)

#: A file changed less than this before it was read may change again within the clock's resolution.
_SETTLED_NS = 2_000_000_000
_SAVE_EVERY = 500


@dataclass(frozen=True)
class Rejected:
    """A file that is left out: its path inside the folder, and why in a few words."""

    path: str
    reason: str


@dataclass(frozen=True)
class _Checked:
    """What is known of a file after it was decoded once; ``reason`` is empty where it was readable."""

    size: int
    mtime_ns: int
    sha256: str
    reason: str
    notes: tuple[str, ...]
    settled: bool


class ImageFiles:
    """Images given by their paths inside a folder: an image source, and what all sources on disk have in common.

    Each file is decoded once when the source is opened, so that damage shows before any work is done; with a store the
    verdicts are remembered, and a second start only looks at what changed. Nothing is ever moved or deleted.

    Args:
        dir: the folder, absolute.
        paths: paths inside it, with forward slashes, in the order of the source.
        labels: class of each path; empty where there are no classes.
        class_names: what the labels count.
        class_noun: what the images show, as one noun ("bird"), if that is known.
        store: where verdicts are remembered, as a store or its folder; None checks everything at each start.

    Attributes:
        rejected: files that look like images and cannot be used, with reasons.
        notes: (path, note) of images that were changed while reading, for instance an animation's first frame.

    Raises:
        UserError: if none of the files is readable.
    """

    def __init__(
        self,
        dir: Path,
        paths: Sequence[str],
        *,
        labels: Sequence[int] = (),
        class_names: Sequence[str] = (),
        class_noun: str = "",
        store: Store | str | Path | None = None,
        rejected: Sequence[Rejected] = (),
    ) -> None:
        self.dir = dir
        self.class_noun = class_noun
        self.class_names = list(class_names)
        checks = _check_files(dir, paths, _as_store(store))
        kept = [place for place, path in enumerate(paths) if not checks[path].reason]
        self._paths = [paths[place] for place in kept]
        self._labels = [labels[place] for place in kept] if labels else []
        self._checks = [checks[path] for path in self._paths]
        bad = [Rejected(printable(path), checks[path].reason) for path in paths if checks[path].reason]
        self.rejected = sorted([*rejected, *bad], key=lambda one: one.path)
        self.notes = [(printable(path), note) for path in self._paths for note in checks[path].notes]
        if not self._paths:
            raise UserError(_nothing_readable(dir, self.rejected))
        self._report()

    def __len__(self) -> int:
        return len(self._paths)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.dir)!r}, {len(self)} images, {len(self.rejected)} rejected)"

    def image(self, index: int) -> Tensor:
        """See `ImageSource.image`.

        Raises:
            UserError: if the file was changed or removed since the folder was opened: stored results would be wrong.
        """
        path, check = self.dir / self._paths[index], self._checks[index]
        try:
            stat = path.stat()
        except OSError as error:
            raise UnreadableImage(f"it has become unreadable since the start: {error.strerror}", path) from error
        if (stat.st_size, stat.st_mtime_ns) != (check.size, check.mtime_ns):
            raise UserError(f"{path} was changed while the program was using it. Start again to take up the new file.")
        return read_image(path)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, without decoding it."""
        return image_size(self.dir / self._paths[index])

    def name(self, index: int) -> str:
        """Path inside the folder, with forward slashes; bytes that are no text are escaped."""
        return printable(self._paths[index])

    def content_hash(self, index: int) -> str:
        """SHA-256 of the file's bytes."""
        return self._checks[index].sha256

    def label(self, index: int) -> int | None:
        """Index into ``class_names``, or None where there are no classes."""
        return self._labels[index] if self._labels else None

    def write_rejected(self, path: str | Path) -> None:
        """Writes the rejected files as a table with the columns path and reason; only the header if there are none."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("path", "reason"))
        table.writerows((one.path, one.reason) for one in self.rejected)
        atomic_write(path, text.getvalue())

    def _report(self) -> None:
        logger.info("%s: %d images", self.dir, len(self))
        if self.rejected:
            first = "; ".join(f"{one.path}: {one.reason}" for one in self.rejected[:3])
            more = f"; and {len(self.rejected) - 3} more" if len(self.rejected) > 3 else ""
            logger.warning("%d files are left out: %s%s", len(self.rejected), first, more)


def _as_store(store: Store | str | Path | None) -> Store | None:
    return store if isinstance(store, Store) or store is None else Store(store)


def existing_folder(given: str | Path, key: str = "dataset.dir", holds: str = "the images") -> Path:
    """The folder that a key of the configuration names, or a UserError with the nearest one."""
    if given is None or not str(given).strip():
        raise UserError(f"{key} is not set. Give the folder that holds {holds}: {key}=/path/to/images")
    folder = Path(given).expanduser().absolute()
    if folder.is_dir():
        if not os.access(folder, os.R_OK | os.X_OK):
            raise UserError(f"{key}: the folder {folder} may not be read. Change its permissions.")
        return folder
    if folder.exists():
        raise UserError(f"{key}: {folder} is a file. Give the folder that holds {holds}: {folder.parent}?")
    raise UserError(f"{key}: there is no folder {folder}. {_nearest_folders(folder)}".rstrip())


def _nearest_folders(missing: Path) -> str:
    """Names the first part of the path that does not exist, and what is there instead."""
    child, parent = missing, missing.parent
    while not parent.is_dir():
        child, parent = parent, parent.parent
    try:
        siblings = [entry.name for entry in os.scandir(parent) if entry.is_dir() and not entry.name.startswith(".")]
    except OSError:
        siblings = []
    return f"{parent} exists and has no {child.name!r} in it. {did_you_mean(child.name, siblings)}"


def printable(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _check_files(root: Path, paths: Sequence[str], store: Store | None) -> dict[str, _Checked]:
    """Decodes each file once, except those of which a verdict is remembered."""
    memory = _Memory(store, root)
    checks: dict[str, _Checked] = {}
    pending: list[str] = []
    for path in paths:
        known = memory.recall(root, path)
        if known is None:
            pending.append(path)
        else:
            checks[path] = known
    said = time.monotonic()
    # Decoding leaves the interpreter's lock to others. The list of files is cut so that what waits stays small, and an
    # interruption loses little.
    with decoding_rules(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(pending), _SAVE_EVERY):
            batch = pending[start : start + _SAVE_EVERY]
            for path, check in zip(batch, threads.map(lambda path: _check(root / path, memory), batch), strict=True):
                checks[path] = check
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    logger.info("Checked %d of %d images", len(checks), len(paths))
            memory.save(checks)
    return checks


def _check(path: Path, memory: _Memory) -> _Checked:
    size = mtime_ns = 0
    sha256, settled = "", False
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            size, mtime_ns = stat.st_size, stat.st_mtime_ns
            settled = time.time_ns() - mtime_ns > _SETTLED_NS
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            reason, notes = memory.verdict(sha256) or _decode_once(file)
    except OSError as error:
        reason, notes = f"it cannot be opened: {error.strerror or error}", ()
    return _Checked(size, mtime_ns, sha256, reason, notes, settled)


def _decode_once(file: Any) -> tuple[str, tuple[str, ...]]:
    file.seek(0)
    try:
        return "", decode_image(file).notes
    except UnreadableImage as error:
        return error.reason, ()


class _Memory:
    """What earlier starts found out about a folder; one entry of the store per folder.

    A verdict is recalled for a file of equal path, size and time, or for equal bytes under another name. The entry is
    no more than a shortcut: two processes that overwrite each other's cost time and nothing else.
    """

    KIND = "folder_checks"

    def __init__(self, store: Store | None, root: Path) -> None:
        self._store = store
        self._key = stable_hash("folder checks", READER_VERSION, sorted(readable_extensions()), os.fsdecode(root))
        self._known: dict[str, _Checked] = self._load()
        self._verdicts = {one.sha256: (one.reason, one.notes) for one in self._known.values() if one.sha256}

    def recall(self, root: Path, path: str) -> _Checked | None:
        known = self._known.get(path)
        if known is None or not known.settled:
            return None
        try:
            stat = (root / path).stat()
        except OSError:
            return None
        return known if (stat.st_size, stat.st_mtime_ns) == (known.size, known.mtime_ns) else None

    def verdict(self, sha256: str) -> tuple[str, tuple[str, ...]] | None:
        return self._verdicts.get(sha256)

    def save(self, checks: dict[str, _Checked]) -> None:
        if self._store is None:
            return
        # Files that could not be opened have no hash; the cause may be gone at the next start.
        rows = [[path, *vars(one).values()] for path, one in checks.items() if one.sha256]
        content = json.dumps(rows).encode()  # plain ASCII: paths that are no text survive as escapes
        self._store.put(self.KIND, self._key, {"json": torch.frombuffer(bytearray(content), dtype=torch.uint8)})

    def _load(self) -> dict[str, _Checked]:
        entry = self._store.get(self.KIND, self._key) if self._store is not None else None
        if entry is None:
            return {}
        rows = json.loads(entry["json"].numpy().tobytes())
        return {
            path: _Checked(size, mtime_ns, sha256, reason, tuple(notes), settled)
            for path, size, mtime_ns, sha256, reason, notes, settled in rows
        }


def _nothing_readable(root: Path, rejected: Sequence[Rejected]) -> str:
    first = "\n".join(f"  {one.path}: {one.reason}" for one in rejected[:5])
    more = f"\n  and {len(rejected) - 5} more" if len(rejected) > 5 else ""
    return (
        f"dataset.dir: none of the {len(rejected)} images in {root} can be read:\n{first}{more}\n"
        f"Give a folder with at least one readable image."
    )
