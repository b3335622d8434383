"""Locks that die with the processes that hold them, by kill -9 too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from partcraft_lit.core.files import make_folder

try:
    import fcntl
except ImportError:  # Windows has none: there, two schedulers in one folder are not noticed
    fcntl = None  # type: ignore[assignment]

#: In the folder of a task.
JOB_LOCK = "job.lock"


@contextmanager
def locked(number: int) -> Iterator[None]:
    """Waits for an open file to be free, and holds it for the block."""
    if fcntl is not None:
        fcntl.flock(number, fcntl.LOCK_EX)
    try:
        yield
    finally:
        if fcntl is not None:
            fcntl.flock(number, fcntl.LOCK_UN)


def try_lock(folder: Path) -> int | None:
    """Takes the lock of a task's folder.

    Returns:
        An open file that holds it until the last copy of it is closed, those of other processes included; None if
        another process has the lock.
    """
    make_folder(folder)
    number = os.open(folder / JOB_LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    if fcntl is not None:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(number)
            return None
    return number
