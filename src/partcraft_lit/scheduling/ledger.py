"""The ledger of a sweep or table: one line for each start and end of a job, in ``jobs.jsonl``.

Lines are only ever appended, each in one write, so a scheduler that is killed leaves at worst one torn line, which
readers pass over. Several schedulers may write one ledger. Whether a job is *done* is decided by its result, not by the
ledger: the result stands a moment earlier, and a scheduler may be killed in that moment.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from partcraft_lit.core.files import explain_disk_errors, make_folder
from partcraft_lit.scheduling.locks import locked

FILE_NAME = "jobs.jsonl"
Status = Literal["submitted", "running", "done", "failed", "stopped"]


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        key: hash of what decides the job's result.
        name: of the job, as messages call it.
        status: "submitted" to a cluster, "running", "done", "failed", or "stopped" by a signal.
        folder: of the job; relative to the ledger's where it lies in it.
        parameters: what the job was asked for, key -> value as it was written.
        code: exit code of a job that ended.
        seconds: that it took.
        message: the end of the output of one that failed.
        cluster_id: number of its job at the cluster.
        time, host, pid: of who wrote the line.
    """

    key: str
    name: str
    status: Status
    folder: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    code: int | None = None
    seconds: float | None = None
    message: str = ""
    cluster_id: str = ""
    time: str = field(default_factory=lambda: datetime.now().isoformat(timespec="seconds"))
    host: str = field(default_factory=socket.gethostname)
    pid: int = field(default_factory=os.getpid)


_NAMES = frozenset(entry.name for entry in fields(Entry))


class Ledger:
    """Reads and appends."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / FILE_NAME

    def append(self, entry: Entry) -> None:
        """Writes a line and waits until it is on the disk.

        Raises:
            UserError: if the disk is full or cannot be written to.
        """
        make_folder(self.folder)
        values = {key: value for key, value in asdict(entry).items() if value not in (None, "", {})}
        line = json.dumps(values, ensure_ascii=False).encode() + b"\n"
        with explain_disk_errors(self.path), self.path.open("a+b") as file, locked(file.fileno()):
            if (size := file.seek(0, os.SEEK_END)) > 0:
                file.seek(size - 1)
                line = line if file.read(1) == b"\n" else b"\n" + line  # behind what a killed process left of a line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())

    def entries(self) -> list[Entry]:
        """Every line that can be read, the oldest first."""
        try:
            text = self.path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return []
        return [entry for line in text.split("\n") if (entry := _read(line)) is not None]

    def latest(self) -> dict[str, Entry]:
        """Key -> the last line of the job, in the order in which the jobs came."""
        found: dict[str, Entry] = {}
        for entry in self.entries():
            found[entry.key] = entry
        return found

    def relative(self, folder: Path) -> str:
        """A job's folder as a line has it: a sweep's folder may be moved as a whole."""
        try:
            return str(folder.absolute().relative_to(self.folder.absolute()))
        except ValueError:
            return str(folder.absolute())

    def absolute(self, folder: str) -> Path:
        return self.folder / folder


def _read(line: str) -> Entry | None:
    try:
        values: Any = json.loads(line)
        return Entry(**{key: value for key, value in values.items() if key in _NAMES})
    except (ValueError, TypeError, AttributeError):
        return None
