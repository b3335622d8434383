"""Safe unpacking of downloaded archives: regular files and folders only, inside one folder, within limits."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import explain_disk_errors

_ZIP_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA})
#: Headers that `tarfile` reads into memory as a whole (long names, pax records); real ones have some hundred bytes.
_EXTENDED_HEADERS = frozenset(
    {
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
    }
)
_LONGEST_HEADER = 1 << 20


@dataclass(frozen=True)
class _Member:
    """A member of an archive; ``kind`` is "file", "folder" or a description of what else it is."""

    name: str
    kind: str
    size: int
    extract: Callable[[Path], object]


class _StrictTarInfo(tarfile.TarInfo):
    """Reports damage behind the first member, where `tarfile` treats a broken header as the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Self:
        try:
            info = super().fromtarfile(tarfile_)
        except tarfile.HeaderError as error:
            if tarfile_.offset and type(error).__name__ != "EOFHeaderError":  # which is a proper end
                raise tarfile.ReadError(str(error)) from error
            raise
        if tarfile_.offset <= info.offset:  # a negative size, for instance in a pax record, would loop for ever
            raise tarfile.ReadError("a member of negative size")
        return info

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.size < 0 or (info.type in _EXTENDED_HEADERS and info.size > _LONGEST_HEADER):
            raise tarfile.ReadError(f"a header of {info.size:,} bytes")
        return info


def unpack(archive: Path, folder: Path, *, max_bytes: int, max_files: int) -> int:
    """Unpacks a tar (plain, gzip, bzip2, xz) or a zip file.

    `tarfile` and `zipfile` read; what they would skip, rename or follow is refused beforehand. Permissions, owners and
    times are not restored.

    Args:
        archive: the file.
        folder: destination; made if it is missing. For all or nothing, give an empty one and rename it afterwards.
        max_bytes, max_files: upper limits of what is unpacked.

    Returns:
        Number of files.

    Raises:
        UserError: if the archive is damaged, truncated, encrypted, empty or of another kind, exceeds a limit, or holds
            a link, a device, a path outside ``folder`` or a file and a folder of the same name. Members before that one
            are unpacked.
    """
    files = size = 0
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with explain_disk_errors(folder):
            for member in _members(archive, max_bytes):
                path = _safe_path(archive, member)
                if member.kind == "file":
                    files, size = files + 1, size + member.size
                if files > max_files or size > max_bytes:
                    raise UserError(
                        f"{archive} unpacks to more than {max_files:,} files or {max_bytes / 1e9:.1f} GB: this is not "
                        "the data set, or max_files and max_bytes have to be raised."
                    )
                _check_kind_on_disk(archive, member, folder, path)
                member.extract(folder)
    except UserError:
        raise
    except Exception as error:  # damaged bytes make the decompressors raise nearly anything
        raise UserError(f"{archive} is truncated or damaged ({error}). Remove it and fetch it again.") from error
    if not files:
        raise UserError(f"{archive} holds no files. Remove it and fetch it again.")
    return files


def _members(archive: Path, max_bytes: int) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield from (_zip_member(archive, file, info) for info in file.infolist())
        return
    try:
        opened = tarfile.open(archive, "r:*", tarinfo=_StrictTarInfo)  # noqa: SIM115 - closed below
    except tarfile.ReadError as error:
        raise UserError(
            f"{archive} is not a tar or zip archive, or its beginning is damaged ({error}). Remove it and fetch it "
            "again."
        ) from error
    with opened as tar:
        yield from (_tar_member(tar, info) for info in tar)
        rest = 0
        while tar.fileobj is not None and (block := tar.fileobj.read(1 << 20)):  # a compressed one ends in a checksum
            rest += len(block)
            if rest > max_bytes:
                raise tarfile.ReadError("endless padding")


def _tar_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    kinds = {info.isreg(): "file", info.isdir(): "folder", info.issym(): "a link", info.islnk(): "a hard link"}
    return _Member(info.name, kinds.get(True, "a device"), info.size, lambda folder: _write(tar, info, folder))


def _write(tar: tarfile.TarFile, info: tarfile.TarInfo, folder: Path) -> None:
    """A file or a folder whose path is safe, without owner, permissions and times: those of a stranger may be nonsense.

    ``TarFile.extract`` would restore them but for its filters, which Python 3.11.0 to 3.11.3 do not have.
    """
    place = folder / info.name.replace("\\", "/")
    if info.isdir():
        place.mkdir(parents=True, exist_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    source = tar.extractfile(info)
    assert source is not None, "a file has contents"
    with source, place.open("wb") as target:
        shutil.copyfileobj(source, target)


def _zip_member(archive: Path, file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    if info.flag_bits & 1:
        raise UserError(f"{archive} is encrypted. Unpack it with its password, and give the folder: dataset.dir=/path.")
    if info.compress_type not in _ZIP_METHODS:
        raise UserError(
            f"{archive} uses a compression that Python's zipfile does not know (method {info.compress_type}). Unpack "
            "it with another program, and give the folder: dataset.dir=/path."
        )
    info.filename = info.filename.replace("\\", "/")
    mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where the writer knew no Unix
    kind = "folder" if info.is_dir() else "file"
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        kind = "a link" if mode == stat.S_IFLNK else "a device"
    return _Member(info.filename, kind, info.file_size, lambda folder: file.extract(info, folder))


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


def _check_kind_on_disk(archive: Path, member: _Member, folder: Path, path: PurePosixPath) -> None:
    """Raises a UserError if a file is to be where a folder is, or the other way round."""
    above = [folder / parent for parent in path.parents]
    clash = next((place for place in above if place.exists() and not place.is_dir()), None)
    place = folder / path
    if clash is None and place.exists() and place.is_dir() != (member.kind == "folder"):
        clash = place
    if clash is not None:
        raise UserError(
            f"{archive} holds a file and a folder of the name {clash.relative_to(folder).as_posix()!r}. Get the "
            "archive from its own page."
        )
