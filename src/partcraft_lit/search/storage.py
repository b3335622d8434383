"""Where a study is kept: a journal file that survives kills at any moment, or a database of optuna's."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import locked, make_folder

if TYPE_CHECKING:
    from optuna.storages import BaseStorage


def check_installed() -> None:
    """Raises a UserError without optuna."""
    try:
        import optuna  # noqa: F401
    except ImportError as error:
        raise UserError(
            "hydra/sweeper=optuna needs optuna, which is not installed: pip install 'partcraft-lit[search]'."
        ) from error


def open_storage(place: str) -> BaseStorage:
    """The storage of a study.

    Args:
        place: a URL as optuna takes it, such as ``sqlite:////home/me/search.db``; else the path of a journal file.

    Raises:
        UserError: if it cannot be opened.
    """
    from optuna.storages import JournalStorage, get_storage
    from optuna.storages.journal import JournalFileBackend

    if "://" in place:
        try:
            return get_storage(place)
        except Exception as error:  # whatever the driver of that database raises
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"hydra.sweeper.storage={place} cannot be opened: {reason}") from error
    path = Path(place).expanduser()
    make_folder(path.parent)
    try:
        return JournalStorage(JournalFileBackend(str(path), _JournalLock(path)))  # type: ignore[arg-type]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"hydra.sweeper.storage={place} cannot be read as a journal of optuna: {error}.") from error


class _JournalLock:
    """Optuna's lock of a journal as one that dies with its process; its own waits 30 s for one that was killed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stack = ExitStack()

    def acquire(self) -> bool:
        self._stack.enter_context(locked(self._path.with_name(f".{self._path.name}.lock")))
        _drop_half_line(self._path)
        return True

    def release(self) -> None:
        self._stack.close()


def _drop_half_line(path: Path) -> None:
    """What a full disk or a power cut left of the last entry; the next one would be appended to it."""
    with path.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
