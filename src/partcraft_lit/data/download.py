"""Verified HTTP downloads that resume: by range requests, checked by size and SHA-256, moved into place when whole.

Written here because no library at hand does all of this; `huggingface_hub` only downloads from its own hub.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import shutil
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write, explain_disk_errors, make_folder, read_text

_log = logging.getLogger(__name__)
#: (bytes so far, bytes in total; 0 if unknown)
Progress = Callable[[int, int], None]
_BLOCK = 1 << 20
#: Statuses after which a retry may succeed.
_TRANSIENT = frozenset({408, 416, 425, 429, 500, 502, 503, 504})
#: A connection below this average over one timeout is given up, as is one that takes a day.
_SLOWEST_BYTES_PER_S = 1024
_LONGEST_S = 86_400


class WrongContent(UserError):
    """A complete file that is not the expected one."""


class _Refused(Exception):
    """A server that does not have the file; what was downloaded before stays."""


def download(
    urls: Sequence[str],
    path: Path,
    *,
    size: int | None,
    sha256: str | None,
    max_bytes: int,
    tries: int,
    timeout_s: float,
    pause_s: float,
    progress: Progress | None = None,
) -> None:
    """Fetches a file from the first address that has it.

    Partial content is kept in ``path`` + ".part"; the next try, also of another start, resumes there.

    Args:
        urls: addresses of the same file.
        path: destination.
        size, sha256: expected; None if unknown.
        max_bytes: upper limit where the size is unknown.
        tries: per address.
        timeout_s: a try is given up if the answer does not begin within this time, or then stalls for as long.
        pause_s: wait before the second try; doubles from try to try.
        progress: called with the progress.

    Raises:
        UserError: if no address gives the file, with what each answered, or the disk is too full.
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
            resumed = part.exists()
            try:
                _fetch_rest(url, part, size, sha256, max_bytes, timeout_s, progress)
                check_content(part, size, sha256)
            except WrongContent as error:
                _discard(part)
                problems.append(f"{url}: {error}")
                if not resumed:  # else the first half may have been another server's
                    break
            except (_Refused, ValueError) as error:  # ValueError: a redirect to what is not an address
                problems.append(f"{url}: {_printable(error)}")
                break
            except urllib.error.HTTPError as error:
                problems.append(f"{url}: HTTP {error.code} {_printable(error.reason)}")
                if error.code not in _TRANSIENT:
                    break
            except (OSError, http.client.HTTPException) as error:
                problems.append(f"{url}: {_printable(error) or type(error).__name__}")
                if _is_unknown_host(error):
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


def _fetch_rest(
    url: str,
    part: Path,
    size: int | None,
    sha256: str | None,
    max_bytes: int,
    timeout_s: float,
    progress: Progress | None,
) -> None:
    """Appends what is missing to ``part``, or starts over if the server cannot resume.

    Raises:
        _Refused: if the server's file is another one; ``part`` is as it was.
        WrongContent: if more bytes come than there should be.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url}: only http and https addresses are downloaded.")
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return
    if size is not None and have > size:
        _discard(part)
        have = 0
    request = urllib.request.Request(url, headers={"User-Agent": "partcraft-lit", "Accept-Encoding": "identity"})
    tag = read_text(_tag_of(part)) if _tag_of(part).exists() else None
    if have and (sha256 is not None or tag is not None):
        request.add_header("Range", f"bytes={have}-")
        if sha256 is None and tag is not None:
            request.add_header("If-Range", tag)  # a file that was replaced comes whole
    try:
        answer = _open(request, timeout_s)
    except urllib.error.HTTPError as error:
        if error.code == 416 and size is not None:
            raise _Refused(f"the server has less than {have:,} bytes, {size:,} are wanted.") from error
        if error.code == 416:  # what is there is longer than the file
            part.unlink(missing_ok=True)
        raise
    with answer:
        if answer.status == 206 and _first_byte(answer) != have:
            raise _Refused(f"the server continues at byte {_first_byte(answer):,} instead of {have:,}")
        start = have if answer.status == 206 else 0
        length = _number(answer.headers.get("Content-Length"))
        total = 0 if length is None else start + length
        if size is not None and length is not None and total != size:
            raise _Refused(f"the server has {total:,} bytes, {size:,} are wanted.")
        if size is None and total > max_bytes:
            raise _Refused(f"the server has {total:,} bytes, at most {max_bytes:,} are taken (max_bytes).")
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        if tag:
            atomic_write(_tag_of(part), tag)
        else:
            _tag_of(part).unlink(missing_ok=True)
        with explain_disk_errors(part), part.open("ab" if start else "wb") as file:
            _copy(answer, file, start, size or total, max_bytes, timeout_s, progress)


def _copy(
    answer: http.client.HTTPResponse,
    file: IO[bytes],
    start: int,
    total: int,
    max_bytes: int,
    timeout_s: float,
    progress: Progress | None,
) -> None:
    """Copies the body; ``total`` is 0 if unknown."""
    done = mark = start
    began = since = time.monotonic()
    while block := answer.read1(_BLOCK):
        done += len(block)
        if done > (total or max_bytes):
            raise WrongContent(f"the server sends more than {total or max_bytes:,} bytes.")
        file.write(block)
        if progress is not None:
            progress(done, total)
        now = time.monotonic()
        if now - began > _LONGEST_S:
            raise TimeoutError(f"not finished after {_LONGEST_S // 3600} hours")
        if now - since > timeout_s:
            if done - mark < _SLOWEST_BYTES_PER_S * (now - since):
                raise TimeoutError(f"{done - mark:,} bytes in {now - since:.0f} s")
            mark, since = done, now
    if done < total:
        raise ConnectionError(f"the connection ended after {done:,} of {total:,} bytes")


class _HttpRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https; urllib follows ftp as well."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).scheme not in ("http", "https"):
            raise _Refused(f"it redirects to {newurl}, which is neither http nor https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(request: urllib.request.Request, timeout_s: float) -> http.client.HTTPResponse:
    """The answer with its headers; in a thread, since a socket's timeout starts again with every byte of a header."""
    outcome: list[Any] = []

    def ask() -> None:
        try:
            outcome.append(urllib.request.build_opener(_HttpRedirects).open(request, timeout=timeout_s))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(2 * timeout_s)  # a socket may take the first half to connect
    if not outcome:
        raise TimeoutError(f"no complete answer after {2 * timeout_s:.0f} s")
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    answer: http.client.HTTPResponse = outcome[0]
    return answer


def _printable(said: object) -> str:
    """What a server said, without the signs that would control a terminal."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in str(said))[:200]


def _first_byte(answer: http.client.HTTPResponse) -> int:
    """Where a partial answer begins, -1 if it does not say so."""
    first = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
    number = _number(first)
    return -1 if number is None else number


def _number(text: str | None) -> int | None:
    """A header's decimal number; None for anything else."""
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 19 else None


def _is_unknown_host(error: Exception) -> bool:
    """No such host, or no network at all: a retry would not help."""
    reason = getattr(error, "reason", error)
    return isinstance(reason, socket.gaierror) and reason.errno == socket.EAI_NONAME


def _tag_of(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _tag_of(part).unlink(missing_ok=True)


def _check_room(part: Path, size: int | None) -> None:
    missing = (size or 0) - (part.stat().st_size if part.exists() else 0)
    free = shutil.disk_usage(part.parent).free
    if missing > free:
        raise UserError(
            f"{part.parent} has {free / 1e9:.1f} GB free, and {missing / 1e9:.1f} GB are still to be downloaded. Make "
            "room, or choose another place: paths.data=/path"
        )
