"""Pack files: append-only sequences of records, written by one process and read by many.

A record is a magic number, length and checksum of its header, the header (JSON: key, body size, time), and the body.
Writers never modify records, and no file has two writers. So a record either exists or not: one that a killed process
left incomplete is the last of its file and extends beyond the end of it.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from partcraft_lit.core.files import make_folder

SUFFIX = ".pack"
#: Beyond this size a writer starts another file.
LARGEST = 1 << 30
_MARK = b"\x93PCPACK\n"
_LENGTHS = struct.Struct("<II")


@dataclass(frozen=True)
class Place:
    """Location of a record's body, and when it was written."""

    path: Path
    offset: int
    size: int
    written: float


class PackWriter:
    """Appends records to its own file in ``folder``, which is created with the first of them."""

    def __init__(self, folder: Path) -> None:
        self._file: int | None = None
        self._folder = folder
        self._path = folder
        self._end = 0
        self.process = os.getpid()

    def append(self, key: str, body: bytes, written: float | None = None) -> Place:
        """Writes a record completely, or raises and leaves nothing of it behind.

        Args:
            key: of the record.
            body: its bytes.
            written: Unix time of the computation; None is now.

        Raises:
            OSError: if the disk is full, or the folder cannot be written to.
        """
        # A file that was pruned during a long pause is unlinked: records appended to it would be lost.
        if self._file is None or self._end > LARGEST or os.fstat(self._file).st_nlink == 0:
            self._open()
        assert self._file is not None
        written = time.time() if written is None else written
        head = json.dumps({"key": key, "size": len(body), "time": written}).encode()
        record = _MARK + _LENGTHS.pack(len(head), zlib.crc32(head)) + head + body
        start = self._end
        try:
            _write_all(self._file, record, start)
        except OSError:
            self._take_back(start)
            raise
        self._end = start + len(record)
        return Place(self._path, self._end - len(body), len(body), written)

    def sync(self) -> None:
        """Flushes to disk."""
        if self._file is not None:
            os.fsync(self._file)

    def close(self) -> None:
        """The next record goes to another file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    __del__ = close

    def _open(self) -> None:
        self.close()
        make_folder(self._folder)
        # Time first: names sort by age, and of two records with one key the newer is read first.
        self._path = self._folder / f"{time.time_ns():020d}-{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._file, self._end = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), 0

    def _take_back(self, end: int) -> None:
        assert self._file is not None
        try:
            os.ftruncate(self._file, end)
        except OSError:  # the file keeps half a record at its end, and the next one goes to another file
            self.close()


class PackIndex:
    """Locations of the records in a folder's packs.

    A key may have several places: the newest first, the others as fallbacks if it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._places: dict[str, list[Place]] = {}
        self._read: dict[str, int] = {}  # file name -> how far its records are known

    def __contains__(self, key: str) -> bool:
        return bool(self._places.get(key))

    def __iter__(self) -> Iterator[str]:
        return (key for key, places in self._places.items() if places)

    def places(self, key: str) -> list[Place]:
        return list(self._places.get(key, ()))

    def add(self, key: str, place: Place) -> None:
        self._places.setdefault(key, []).insert(0, place)
        self._read[place.path.name] = place.offset + place.size

    def drop(self, key: str, place: Place) -> None:
        """Removes a damaged place."""
        self._places[key] = [other for other in self._places[key] if other != place]

    def refresh(self) -> None:
        """Indexes what any process has written since the last refresh."""
        for path in packs(self._folder):
            known = self._read.get(path.name, 0)
            with suppress(FileNotFoundError):  # pruned by another process in this moment
                if path.stat().st_size > known:
                    self._read[path.name] = self._take_in(path, known)

    def _take_in(self, path: Path, start: int) -> int:
        end = start
        for key, place in records(path, start):
            self._places.setdefault(key, []).insert(0, place)
            end = place.offset + place.size
        return end


def packs(folder: Path) -> list[Path]:
    """The pack files of a folder, oldest first."""
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except FileNotFoundError:
        return []


def records(path: Path, start: int = 0) -> Iterator[tuple[str, Place]]:
    """Keys and places of the complete records of a file; bodies are not checked.

    After a damaged header the search continues at the next magic number.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= start:
            return
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as content:
            position = content.find(_MARK, start)
            while position >= 0:
                found = _record(content, position, size, path)
                if found is None:
                    position = content.find(_MARK, position + 1)
                    continue
                yield found
                end = found[1].offset + found[1].size
                position = end if content[end : end + len(_MARK)] == _MARK else content.find(_MARK, end)


def _record(content: mmap.mmap, position: int, size: int, path: Path) -> tuple[str, Place] | None:
    start = position + len(_MARK) + _LENGTHS.size
    if start > size:
        return None
    length, checksum = _LENGTHS.unpack(content[start - _LENGTHS.size : start])
    head = content[start : start + length]
    if start + length > size or zlib.crc32(head) != checksum:
        return None
    told = json.loads(head)
    place = Place(path, start + length, int(told["size"]), float(told["time"]))
    return (str(told["key"]), place) if place.offset + place.size <= size else None


def read(place: Place) -> bytes:
    """The body at a place; shorter if the file was truncated since.

    Raises:
        FileNotFoundError: if the file is gone.
    """
    with place.path.open("rb") as file:
        file.seek(place.offset)
        return file.read(place.size)


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        os.lseek(file, offset, os.SEEK_SET)
        written = os.write(file, view)
        view, offset = view[written:], offset + written
