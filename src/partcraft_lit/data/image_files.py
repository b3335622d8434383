"""Image files of a folder, each decoded once up front, with labels, content hashes and a list of rejected files."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import os
import stat
import time
from collections import Counter
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
    """A file that is left out: its path inside the folder, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class _Checked:
    """The verdict on a file after decoding it; ``reason`` is empty if readable, ``variant`` as in `DecodedImage`."""

    size: int
    mtime_ns: int
    sha256: str
    reason: str
    notes: tuple[str, ...]
    variant: str
    settled: bool


class ImageFiles:
    """Images given by their paths inside a folder: an image source, and what all sources on disk have in common.

    Each file is decoded once when the source is opened, so that damage shows before any work; with a store the verdicts
    are cached, and a second start only checks what changed. Nothing is ever moved or deleted.

    Args:
        dir: the folder, absolute.
        paths: paths inside it, with forward slashes, in the order of the source.
        labels: class of each path; empty without classes.
        class_names: names of the labels.
        class_noun: what the images show, as one noun ("bird"), if that is known.
        store: cache of the verdicts, as a store or its folder; None checks everything at each start.

    Attributes:
        rejected: files that look like images and cannot be used, with reasons.
        notes: (path, note) of images that were converted, for instance an animation reduced to its first frame.

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
            status = path.stat()
        except OSError as error:
            raise UnreadableImage(f"it has become unreadable since the start: {error.strerror}", path) from error
        if (status.st_size, status.st_mtime_ns) != (check.size, check.mtime_ns):
            raise UserError(f"{path} was changed while the program was using it. Start again to take up the new file.")
        return read_image(path)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of an image, without decoding it."""
        return image_size(self.dir / self._paths[index])

    def name(self, index: int) -> str:
        """Path inside the folder, with forward slashes; undecodable bytes are escaped."""
        return printable(self._paths[index])

    def content_hash(self, index: int) -> str:
        """SHA-256 of the file's bytes, and of how they were decoded where an earlier reader did it otherwise."""
        check = self._checks[index]
        return stable_hash(check.sha256, check.variant) if check.variant else check.sha256

    def label(self, index: int) -> int | None:
        """Index into ``class_names``, or None without classes."""
        return self._labels[index] if self._labels else None

    def write_rejected(self, path: str | Path) -> None:
        """Writes the rejected files as a CSV table with columns path and reason; only the header if there are none."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(("path", "reason"))
        table.writerows((one.path, one.reason) for one in self.rejected)
        atomic_write(path, text.getvalue())

    def _report(self) -> None:
        logger.info("%s: %d images", self.dir, len(self))
        for note, count in Counter(note for _, note in self.notes).most_common(5):
            logger.info("%d of them: %s", count, note)
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
    """Decodes each file once, except those with a cached verdict."""
    cache = _VerdictCache(store, root)
    checks: dict[str, _Checked] = {}
    pending: list[str] = []
    for path in paths:
        known = cache.recall(root, path)
        if known is None:
            pending.append(path)
        else:
            checks[path] = known
    said = time.monotonic()
    # Decoding releases the GIL. Batches of files keep the queue small, and an interruption loses little.
    with decoding_rules(), ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as threads:
        for start in range(0, len(pending), _SAVE_EVERY):
            batch = pending[start : start + _SAVE_EVERY]
            for path, check in zip(batch, threads.map(lambda path: _check(root / path, cache), batch), strict=True):
                checks[path] = check
                if time.monotonic() - said > 5:
                    said = time.monotonic()
                    logger.info("Checked %d of %d images", len(checks), len(paths))
            cache.save(checks)
    return checks


def _check(path: Path, cache: _VerdictCache) -> _Checked:
    size = mtime_ns = 0
    sha256, settled = "", False
    verdict: _Verdict = ("", (), "")
    try:
        if odd := special_kind(path.stat()):  # opening a pipe would wait for ever
            return _Checked(0, 0, "", f"it is {odd}, no regular file", (), "", False)
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            size, mtime_ns = status.st_size, status.st_mtime_ns
            settled = time.time_ns() - mtime_ns > _SETTLED_NS
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            verdict = cache.verdict(sha256) or _decode_once(file)
    except OSError as error:
        verdict = (f"it cannot be opened: {error.strerror or error}", (), "")
    return _Checked(size, mtime_ns, sha256, *verdict, settled)


def special_kind(status: os.stat_result) -> str:
    """What a directory entry is that holds no bytes of its own, such as "a pipe"; "" for files and folders."""
    kinds = {
        stat.S_IFIFO: "a pipe",
        stat.S_IFCHR: "a device",
        stat.S_IFBLK: "a device",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(status.st_mode), "")


def _decode_once(file: Any) -> _Verdict:
    file.seek(0)
    try:
        decoded = decode_image(file)
        return "", decoded.notes, decoded.variant
    except UnreadableImage as error:
        return error.reason, (), ""


#: Reason, notes and variant; see `_Checked`.
_Verdict = tuple[str, tuple[str, ...], str]


class _VerdictCache:
    """Verdicts of earlier starts; one entry of the store per folder.

    A verdict is found for a file of equal path, size and time, or for equal bytes under another name. Processes that
    overwrite each other's entry lose time and nothing else.
    """

    KIND = "folder_checks"

    def __init__(self, store: Store | None, root: Path) -> None:
        self._store = store
        self._key = stable_hash("folder checks", READER_VERSION, sorted(readable_extensions()), os.fsdecode(root))
        self._known: dict[str, _Checked] = self._load()
        self._verdicts = {
            one.sha256: (one.reason, one.notes, one.variant) for one in self._known.values() if one.sha256
        }

    def recall(self, root: Path, path: str) -> _Checked | None:
        known = self._known.get(path)
        if known is None or not known.settled:
            return None
        try:
            status = (root / path).stat()
        except OSError:
            return None
        return known if (status.st_size, status.st_mtime_ns) == (known.size, known.mtime_ns) else None

    def verdict(self, sha256: str) -> _Verdict | None:
        return self._verdicts.get(sha256)

    def save(self, checks: dict[str, _Checked]) -> None:
        if self._store is None:
            return
        # Files that could not be opened have no hash; the cause may be gone at the next start.
        rows = [[path, *vars(one).values()] for path, one in checks.items() if one.sha256]
        content = json.dumps(rows).encode()  # plain ASCII: paths that are not text survive as escapes
        self._store.put(self.KIND, self._key, {"json": torch.frombuffer(bytearray(content), dtype=torch.uint8)})

    def _load(self) -> dict[str, _Checked]:
        entry = self._store.get(self.KIND, self._key) if self._store is not None else None
        if entry is None:
            return {}
        rows = json.loads(entry["json"].numpy().tobytes())
        return {
            path: _Checked(size, mtime_ns, sha256, reason, tuple(notes), variant, settled)
            for path, size, mtime_ns, sha256, reason, notes, variant, settled in rows
        }


def _nothing_readable(root: Path, rejected: Sequence[Rejected]) -> str:
    first = "\n".join(f"  {one.path}: {one.reason}" for one in rejected[:5])
    more = f"\n  and {len(rejected) - 5} more" if len(rejected) > 5 else ""
    return (
        f"dataset.dir: none of the {len(rejected)} images in {root} can be read:\n{first}{more}\n"
        f"Give a folder with at least one readable image."
    )
