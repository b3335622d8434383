"""Files over HTTP: continued where they broke off, checked by size and hash, in place only when they are whole."""

from __future__ import annotations

import errno
import hashlib
import http.client
import logging
import shutil
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write, make_folder

_log = logging.getLogger(__name__)
#: (bytes so far, bytes in all)
Progress = Callable[[int, int], None]
_BLOCK = 1 << 20
#: The server may answer otherwise a little later.
_PASSING = frozenset({408, 416, 425, 429, 500, 502, 503, 504})


class WrongContent(UserError):
    """A file that is not the one that was wanted."""


def download(
    urls: Sequence[str],
    path: Path,
    *,
    size: int | None,
    sha256: str | None,
    tries: int,
    timeout_s: float,
    pause_s: float,
    progress: Progress | None = None,
) -> None:
    """Fetches a file from the first address that has it.

    What arrives is kept in ``path`` + ".part", and the next try, also of another start, continues there.

    Args:
        urls: addresses of the same file.
        path: where it goes.
        size, sha256: of the file; None if unknown.
        tries: per address.
        timeout_s: without a byte for so long, a try is given up.
        pause_s: wait before the second try; doubles from try to try.
        progress: told how far it is.

    Raises:
        UserError: if no address gives the file, saying what each answered, or there is no room for it.
    """
    part = path.with_name(path.name + ".part")
    make_folder(part.parent)
    _check_room(part, size)
    problems: list[str] = []
    for url in urls:
        for attempt in range(tries):
            if attempt:
                pause = pause_s * 2 ** (attempt - 1)
                _log.warning("%s; trying again in %.0f s", problems[-1], pause)
                time.sleep(pause)
            try:
                _fetch_rest(url, part, size, timeout_s, progress)
                check_content(part, size, sha256)
            except WrongContent as error:
                part.unlink(missing_ok=True)
                _tag_of(part).unlink(missing_ok=True)
                problems.append(f"{url}: {error}")
                break  # it would come again
            except urllib.error.HTTPError as error:
                problems.append(f"{url}: HTTP {error.code} {error.reason}")
                if error.code not in _PASSING:
                    break
            except (OSError, http.client.HTTPException) as error:
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise
                problems.append(f"{url}: {error or type(error).__name__}")
                if _is_unknown_name(error):
                    break
            else:
                part.replace(path)
                _tag_of(part).unlink(missing_ok=True)
                return
    kept = f" {part.stat().st_size:,} bytes are kept; the same command continues." if part.exists() else ""
    shown = "\n  ".join(dict.fromkeys(problems))
    raise UserError(f"{path.name} could not be downloaded:\n  {shown}\n{kept.strip()}".rstrip())


def check_content(path: Path, size: int | None, sha256: str | None) -> str:
    """The SHA-256 of a file.

    Raises:
        WrongContent: if size or hash are not the expected ones.
    """
    found = path.stat().st_size
    if size is not None and found != size:
        what = "truncated" if found < size else "another file"
        raise WrongContent(f"{path.name} is {what}: it has {found:,} bytes, {size:,} are wanted.")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 is not None and digest != sha256.lower():
        raise WrongContent(f"{path.name} is damaged or another file: its SHA-256 is {digest}, {sha256} is wanted.")
    return digest


def _fetch_rest(url: str, part: Path, size: int | None, timeout_s: float, progress: Progress | None) -> None:
    """Appends to ``part`` what is missing in it, or starts over where the server cannot continue."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses are downloaded.")
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return
    request = urllib.request.Request(url, headers={"User-Agent": "partcraft-lit", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if _tag_of(part).exists():
            request.add_header("If-Range", _tag_of(part).read_text())  # a file that was replaced comes whole
    try:
        answer = urllib.request.urlopen(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is there is longer than the file
            part.unlink(missing_ok=True)
        raise
    with answer:
        continues = answer.status == 206 and _first_byte(answer) == have
        start = have if continues else 0
        total = start + int(answer.headers.get("Content-Length") or 0)
        if size is not None and total != size and answer.headers.get("Content-Length"):
            raise WrongContent(f"the server has {total:,} bytes, {size:,} are wanted.")
        if tag := answer.headers.get("ETag"):
            atomic_write(_tag_of(part), tag)
        else:
            _tag_of(part).unlink(missing_ok=True)
        _copy(answer, part, start, size or total, progress)


def _copy(answer: http.client.HTTPResponse, part: Path, start: int, total: int, progress: Progress | None) -> None:
    done = start
    with part.open("ab" if start else "wb") as file:
        while block := answer.read(_BLOCK):
            done += len(block)
            if total and done > total:
                raise WrongContent(f"the server sends more than the {total:,} bytes that are wanted.")
            file.write(block)
            if progress is not None:
                progress(done, total)
    if done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


def _first_byte(answer: http.client.HTTPResponse) -> int:
    """Where a partial answer begins, -1 if it does not say so."""
    said = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
    return int(said) if said.isdigit() else -1


def _is_unknown_name(error: Exception) -> bool:
    """No such machine, or no network at all: it would be the same a little later."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME


def _tag_of(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _check_room(part: Path, size: int | None) -> None:
    missing = (size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise UserError(
            f"{part.parent} has {free / 1e9:.1f} GB free, and {missing / 1e9:.1f} GB are still to be downloaded. Make "
            "room, or choose another place: paths.data=/path"
        )
