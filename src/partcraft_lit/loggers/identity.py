"""What tells a run from others, in every logger."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path

from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.files import atomic_write, make_folder

#: In the run folder.
FILE_NAME = "logger_id.txt"


@dataclass(frozen=True)
class RunIdentity:
    """How a run is found in a dashboard.

    Attributes:
        name: says what differs from other runs.
        group: what the runs of a sweep or table have in common.
        job_type: the verb.
        tags: data set, method, backbone.
    """

    name: str
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()


def run_id(folder: Path) -> str:
    """The id of the run in a folder, for its loggers; a new one where the folder has none.

    It is drawn, not made from the folder's name: two people may both have a ``birds``, and W&B refuses some signs.
    """
    path = folder / FILE_NAME
    if path.is_file() and (found := path.read_text(encoding="utf-8").strip()):
        return found
    drawn = uuid.uuid4().hex[:16]
    if is_first_process():
        make_folder(folder)
        atomic_write(path, drawn + "\n")
    return drawn
