"""Atomic writing of files, and reading of text files."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from partcraft_lit.core.errors import UserError

try:
    import fcntl
except ImportError:  # Windows has none: there, processes that share a file have to be kept apart by hand
    fcntl = None  # type: ignore[assignment]

_NEARLY_NOTHING = 1 << 20
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_WRITABLE = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG})


@contextmanager
def atomic_path(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Gives a temporary path beside ``path``; what is written there takes its place when the block ends well.

    The temporary name is hidden and keeps the suffix, since some writers choose the format by it. If the block raises,
    or the process is killed, ``path`` is as it was.

    Args:
        path: the file to write; missing folders are made.
        sync: wait until the bytes are on the disk before renaming, so that a power cut cannot leave an empty file under
            the final name. Switch it off only for files whose reader notices damage and can make them again.

    Raises:
        UserError: if the disk is full or the place cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:80]}.{os.getpid()}-{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
        if sync and os.name == "posix":  # elsewhere a folder cannot be opened, and the rename is durable by itself
            _sync(path.parent)
    except Exception as error:
        told = _as_user_error(error, path)
        if told is not None:
            raise told from error
        raise
    finally:
        with suppress(OSError):  # there is nothing to remove after success, or no folder
            temporary.unlink()


def atomic_write(path: str | Path, data: bytes | str, sync: bool = True) -> None:
    """Writes bytes, or text as UTF-8, in one step; arguments and errors as in `atomic_path`."""
    content = data.encode() if isinstance(data, str) else data
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(content)


@contextmanager
def explain_disk_errors(path: Path) -> Iterator[None]:
    """Turns disk errors while ``path`` is written into UserErrors that say what to do."""
    try:
        yield
    except Exception as error:
        told = _as_user_error(error, path)
        if told is not None:
            raise told from error
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. The lock dies with its process.

    Args:
        path: of a file that is only the lock, and stays.
    """
    with path.open("a", encoding="utf-8") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_folder(path: Path) -> None:
    """Makes a folder to write into, and those above it; one that is there is kept.

    Raises:
        UserError: if it cannot be made, or nothing can be written into it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        file = next((place for place in (path, *path.parents) if place.exists() and not place.is_dir()), None)
        if file is not None:
            raise UserError(f"{file} is a file, and the folder {path} is wanted. Choose another path.") from error
        raise _as_user_error(error, path) or UserError(
            f"The folder {path} cannot be made: {error.strerror}. Choose a folder that you may write to."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"The folder {path} cannot be written into. Choose another, or change its rights.")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _as_user_error(error: Exception, path: Path) -> UserError | None:
    code = error.errno if isinstance(error, OSError) else None
    # Writers in Rust (safetensors) report a full disk in words only, and torch.save not even that: it fails on a
    # position in the file. The temporary file is still there, so the disk shows whether that was the cause.
    unexplained = isinstance(error, RuntimeError) and _free_bytes(path) < _NEARLY_NOTHING
    if code in _DISK_FULL or "No space left on device" in str(error) or unexplained:
        return UserError(
            f"The disk is full: {path} could not be written ({_free_bytes(path) / 1e6:.1f} MB free). "
            f"Free some space there, or choose a folder on another disk. What was at that path before is untouched."
        )
    if code in _NOT_WRITABLE and isinstance(error, OSError):
        return UserError(f"{path} cannot be written: {error.strerror}. Choose a folder that you may write to.")
    return None


def _free_bytes(path: Path) -> int:
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    return shutil.disk_usage(folder).free


def read_text(path: Path, key: str = "") -> str:
    """A text file in UTF-8, with or without a byte order mark; line ends become "\\n".

    Args:
        path: of the file.
        key: setting that names it, for messages.

    Raises:
        UserError: if the file cannot be read or is not UTF-8.
    """
    given = f"{key}={path}" if key else str(path)
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{given} cannot be read as UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}. Save it as "
            "UTF-8."
        ) from error
    except OSError as error:
        raise UserError(f"{given} cannot be read as UTF-8 text: {error.strerror or error}") from error


def read_lines(path: Path, key: str) -> list[str]:
    """Stripped lines of a text file, without empty ones and comments (#); arguments and errors as in `read_text`.

    Raises:
        UserError: also if there are none.
    """
    lines = [line.strip() for line in read_text(path, key).splitlines()]
    kept = [line for line in lines if line and not line.startswith("#")]
    if not kept:
        raise UserError(f"{key}={path} holds no text; write one per line (lines that begin with # do not count).")
    return kept
