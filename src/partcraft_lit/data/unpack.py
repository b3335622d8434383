"""Archives of strangers: plain files and folders come out, below one folder, and nothing else does."""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from partcraft_lit.core.errors import UserError


@dataclass(frozen=True)
class _Member:
    """A file or folder of an archive; ``kind`` is "file", "folder" or what else it is, in words."""

    name: str
    kind: str
    size: int
    open: Callable[[], IO[bytes] | None]


def unpack(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> int:
    """Unpacks a tar (plain, gzip, bzip2, xz) or a zip file.

    Permissions, owners and times are not taken over.

    Args:
        archive: the file.
        folder: where to; made if it is missing. A caller who wants all or nothing gives an empty one and renames it.
        max_bytes, max_files: no more is unpacked.

    Returns:
        Number of files.

    Raises:
        UserError: if the archive is damaged, truncated or of another kind, too large, or holds a link, a device or a
            path that leads out of ``folder``. Files before that one are there.
    """
    files = written = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for member in _members(archive):
            place = folder / _safe_path(archive, member)
            if member.kind == "folder":
                place.mkdir(parents=True, exist_ok=True)
                continue
            files, written = files + 1, written + member.size
            if files > max_files or written > max_bytes:
                raise UserError(
                    f"{archive} unpacks to more than {max_files:,} files or {max_bytes / 1e9:.1f} GB: this is not the "
                    "data set, or max_files and max_bytes have to be raised."
                )
            _write(member, place)
    except (gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError) as error:
        raise UserError(f"{archive} is truncated or damaged ({error}). Remove it and fetch it again.") from error
    return files


def _members(archive: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield from (_zip_member(file, info) for info in file.infolist())
        return
    try:
        opened = tarfile.open(archive, "r:*")  # noqa: SIM115 - closed below; errors of opening have their own words
    except tarfile.ReadError as error:
        raise UserError(
            f"{archive} is no tar or zip archive, or its beginning is damaged ({error}). Remove it and fetch it again."
        ) from error
    with opened as tar:
        yield from (_tar_member(tar, info) for info in tar)
        while tar.fileobj is not None and tar.fileobj.read(1 << 20):
            pass  # to the end of the file, where a compressed one has its checksum


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kinds = {info.isreg(): "file", info.isdir(): "folder", info.issym(): "a link", info.islnk(): "a hard link"}
    kind = kinds.get(True, "a device")
    return _Member(info.name, kind, info.size, lambda: tar.extractfile(info))


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where the writer knew no Unix
    kind = "folder" if info.is_dir() else "file"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a link" if mode == stat.S_IFLNK else "a device"
    return _Member(info.filename, kind, info.file_size, lambda: file.open(info))


def _safe_path(archive: Path, member: _Member) -> PurePosixPath:
    """The path of a member inside the folder.

    Raises:
        UserError: if it would lead elsewhere, or the member is neither file nor folder.
    """
    name = member.name.replace("\\", "/")
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or ":" in name.split("/")[0] or "\0" in name:
        raise UserError(
            f"{archive} holds a path that leads out of its folder: {member.name!r}. It was not unpacked; do not trust "
            "this file, and get it from its own page."
        )
    if member.kind not in ("file", "folder"):
        raise UserError(
            f"{archive} holds {member.kind}, {member.name!r}; only files and folders are unpacked. Get the archive "
            "from its own page."
        )
    return path


def _write(member: _Member, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    source = member.open()
    if source is None:
        raise tarfile.ReadError(f"{member.name} has no content")
    with source, place.open("wb") as target:
        shutil.copyfileobj(source, target, 1 << 20)
    if place.stat().st_size != member.size:
        raise tarfile.ReadError(f"{member.name} ends early")
