"""What Lightning asks of a logger that is guarded and knows its run by an id."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers.logger import Logger

from partcraft_lit.loggers.guard import Guard
from partcraft_lit.loggers.identity import RunIdentity


class GuardedLogger(Logger):
    """A logger that no trouble with its service lets end a run.

    Args:
        folder: the run folder.
        run_id: of the run; the same for every start in this folder.
        identity: name, group, job type and tags.
        project: in which the service has the run.
        guard: of every call of the service.
    """

    def __init__(self, folder: Path, run_id: str, identity: RunIdentity, project: str, guard: Guard) -> None:
        super().__init__()
        self._folder, self._id, self._identity, self._project = folder, run_id, identity, project
        self._guard = guard

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._id

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @property
    def trouble(self) -> str | None:
        return self._guard.trouble
