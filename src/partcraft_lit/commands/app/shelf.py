"""What the app keeps for its visitors: open runs, photos, drawn images. All of it bounded."""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError

T = TypeVar("T")

#: Hydra composes one configuration at a time; whoever does so here, or reads that of a run, holds this.
COMPOSING = threading.RLock()
#: Open runs: each may hold a model.
_OPEN_RUNS = 2
#: Names that become parts of paths and addresses.
_ID = re.compile(r"[0-9a-f]{32}")
_DATED = re.compile(r"(\d{4}-\d\d-\d\d)_(\d\d)-(\d\d)-\d\d(?:\.\d+)?-[0-9a-f]{8}")


def new_id() -> str:
    """Not to be guessed: whoever has it may see what it names."""
    return secrets.token_hex(16)


class RecentCache(Generic[T]):
    """The newest objects by id; for any number of threads."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._kept: OrderedDict[str, T] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, value: T, key: str | None = None) -> str:
        key = key or new_id()
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > self.number:
                self._kept.popitem(last=False)
        return key

    def get(self, key: str) -> T | None:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
            return self._kept.get(key)


class DrawnImages:
    """PNGs in a folder under random names; the oldest beyond ``number`` are removed."""

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder
        self.number = number
        self._names: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, write: Callable[[Path], Any]) -> str:
        """Writes a new image with ``write(path)``; returns its id."""
        name = new_id()
        write(self.folder / f"{name}.png")
        with self._lock:
            self._names[name] = None
            old = [self._names.popitem(last=False)[0] for _ in range(len(self._names) - self.number)]
        for other in old:
            with suppress(OSError):
                (self.folder / f"{other}.png").unlink()
        return name

    def path(self, name: str) -> Path:
        """Of an image.

        Raises:
            UserError: if it is no longer, or never was.
        """
        path = self.folder / f"{name}.png"
        if not _ID.fullmatch(name) or not path.is_file():
            raise UserError("This image is no longer kept; draw it again.")
        return path


class Runs:
    """The runs that can be opened, by name: those below ``logs``, and the one that was named.

    Args:
        logs: root of the run folders.
        first: shown first; a run or a bundle anywhere.
        open_run: opens a folder.
        alone: nothing but ``first`` may be opened.
    """

    def __init__(self, logs: Path, first: Path | None, open_run: Callable[[Path], T], *, alone: bool = False) -> None:
        self.root = logs / "train" / "runs"
        self.first = first
        self.alone = alone
        self._open_run = open_run
        self._open: OrderedDict[tuple[str, float], Any] = OrderedDict()
        self._lock = COMPOSING

    def folders(self) -> dict[str, Path]:
        """Name -> folder, newest first."""
        found = {}
        if not self.alone and self.root.is_dir():
            for folder in sorted(self.root.iterdir(), key=lambda path: path.name, reverse=True):
                if _can_be_opened(folder):
                    found[folder.name] = folder.resolve()
        if self.first is not None:
            found.setdefault(self.first.name, self.first)
        return found

    def listed(self) -> list[dict[str, str]]:
        return [{"name": name, "title": title_of(name)} for name in self.folders()]

    def folder(self, name: str) -> Path:
        """Raises a UserError for a name that is not listed."""
        folder = self.folders().get(name)
        if folder is None:
            raise UserError("This model is not here any more; choose another one above.")
        return folder

    def get(self, name: str) -> Any:
        """The open run.

        Raises:
            UserError: if it is gone, or cannot be opened.
        """
        folder = self.folder(name)
        key = (name, version(folder))
        with self._lock:
            if key not in self._open:
                self._open[key] = self._open_run(folder)
            self._open.move_to_end(key)
            while len(self._open) > _OPEN_RUNS:
                self._open.popitem(last=False)
            return self._open[key]

    def named(self, run: str) -> str | None:
        """The listed name of a run that an image says it was made with; an export has the name of its run."""
        if run in self.folders():
            return run
        if self.first is not None and getattr(self.get(self.first.name), "name", None) == run:
            return self.first.name
        return None

    def close(self, name: str) -> None:
        """So that it is read again."""
        with self._lock:
            for key in [key for key in self._open if key[0] == name]:
                del self._open[key]


def version(folder: Path) -> float:
    """Changes whenever the parts of a run do."""
    places = [folder / "parts" / "discovery.json", folder / "parts" / "codes.csv", folder / "export.json"]
    return max((place.stat().st_mtime for place in places if place.is_file()), default=0.0)


def title_of(name: str) -> str:
    """``2026-11-26_18-05-10-1a2b3c4d`` -> ``26 Nov, 18:05``; other names as they are."""
    if (match := _DATED.fullmatch(name)) is None:
        return name
    day, hour, minute = match.groups()
    date = datetime.strptime(day, "%Y-%m-%d")
    return f"{date.day} {date:%b}, {hour}:{minute}"


def _can_be_opened(folder: Path) -> bool:
    if not (folder / ".hydra" / "config.yaml").is_file():
        return False
    trained = (folder / rundir.FINISHED).is_file() or any((folder / "checkpoints").glob("*"))
    return trained and (folder / "parts").is_dir()
