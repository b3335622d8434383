"""What tells a run from others, in every logger."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.files import atomic_write, make_folder

#: In the environment: the group of the runs of a command that starts others, or of a user's script.
GROUP_VARIABLE = "WANDB_RUN_GROUP"
#: In the environment of what the agent of a W&B sweep starts.
SWEEP_VARIABLE = "WANDB_SWEEP_ID"
#: In the run folder.
FILE_NAME = "logger_id.txt"
IDENTITY_FILE = "logger_identity.json"


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


@contextmanager
def grouped(name: str) -> Iterator[None]:
    """Runs that are started meanwhile, by commands of their own too, are of this group unless they have one."""
    if GROUP_VARIABLE in os.environ:
        yield
        return
    os.environ[GROUP_VARIABLE] = name
    try:
        yield
    finally:
        os.environ.pop(GROUP_VARIABLE, None)


def write_identity(folder: Path, identity: RunIdentity) -> None:
    """Keeps the identity in a run folder, so that its log can be replayed anywhere."""
    atomic_write(folder / IDENTITY_FILE, json.dumps(asdict(identity), indent=1, ensure_ascii=False) + "\n")


def read_identity(folder: Path) -> RunIdentity:
    """What ``write_identity`` kept; of a run that has none, the name of its folder."""
    try:
        content = json.loads((folder / IDENTITY_FILE).read_text(encoding="utf-8"))
        return RunIdentity(content["name"], content["group"], content["job_type"], tuple(content["tags"]))
    except (OSError, ValueError, KeyError, TypeError):
        return RunIdentity(folder.name, job_type="train")


def run_id(folder: Path) -> str:
    """The id of the run in a folder, for its loggers; a new one where the folder has none.

    It is drawn, not made from the folder's name: two people may both have a ``birds``, and W&B refuses some signs. In a
    sweep of W&B its agent draws it.
    """
    path = folder / FILE_NAME
    if os.environ.get(SWEEP_VARIABLE) and (given := os.environ.get("WANDB_RUN_ID")):
        if is_first_process():
            make_folder(folder)
            atomic_write(path, given + "\n")
        return given
    if path.is_file() and (found := path.read_text(encoding="utf-8").strip()):
        return found
    return new_run_id(folder)


def new_run_id(folder: Path) -> str:
    """Draws an id for the run in a folder, in place of the one that it may have."""
    drawn = uuid.uuid4().hex[:16]
    if is_first_process():
        make_folder(folder)
        atomic_write(folder / FILE_NAME, drawn + "\n")
    return drawn
