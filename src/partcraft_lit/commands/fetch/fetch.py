"""``partcraft fetch``: a published data set, from its archives to the folder that training reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from partcraft_lit.commands.fetch.settings import ArchiveSettings, DownloadSettings, FetchSettings
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.progress import Stages
from partcraft_lit.data.download import check_content, download
from partcraft_lit.data.unpack import unpack

#: What was fetched, beside the data.
NOTE = "fetched.json"


def fetch(settings: FetchSettings, folder: Path) -> dict[str, Any]:
    """Downloads or takes the archives of a data set, and unpacks them into place in one step.

    A second start finds the data there and does nothing; an interrupted one continues its downloads.

    Args:
        settings: what the configuration says.
        folder: run folder.

    Returns:
        Where the data is, and the archives with their hashes.

    Raises:
        UserError: if an archive cannot be had, is not the right one, or lacks what the data set consists of; or if the
            place is taken by something else.
    """
    stages, wanted = Stages(), settings.download
    if place := _place_of(wanted):
        stages.log(f"{wanted.name} is there already: {place}")
        return {"dir": str(place), "archives": {}}
    if wanted.dir.exists() and (not wanted.dir.is_dir() or any(wanted.dir.iterdir())):
        raise UserError(
            f"{wanted.dir} is not empty, and it is not the data set {wanted.name}: "
            f"{', '.join(_missing(wanted.dir, wanted))} is missing. Nothing is replaced: move it away, or choose "
            "another place with dataset.dir=/path."
        )
    downloads = wanted.dir.parent / "downloads" / wanted.name
    with rundir.held(downloads):
        archives = {archive.file: _archive(archive, downloads, settings, stages) for archive in wanted.archives}
        hashes = {archive.file: _check(archive, archives[archive.file], wanted, stages) for archive in wanted.archives}
        _unpack_into_place(archives, hashes, settings, stages)
    if not settings.keep_archives:
        shutil.rmtree(downloads)  # a local archive stays where it is
    stages.log(f"{wanted.name}: {wanted.dir}. Train on it: partcraft train dataset={wanted.name}")
    result = {"dir": str(wanted.dir), "archives": hashes}
    atomic_write(folder / NOTE, json.dumps(result, indent=1) + "\n")
    return result


def by_hand(wanted: DownloadSettings) -> str:
    """How to do without this command, or without a network here."""
    files = "\n".join(
        f"  {archive.file}: {archive.urls[0]}"
        + (f" ({archive.bytes:,} bytes, SHA-256 {archive.sha256})" if archive.bytes else "")
        for archive in wanted.archives
    )
    return (
        f"Without a network here: download on another machine, from {wanted.page},\n{files}\nput the files into one "
        f"folder, and give it: partcraft fetch dataset={wanted.name} archive=/path/to/folder. Or unpack them yourself, "
        f"so that {wanted.dir / wanted.marks[0]} exists."
    )


def _place_of(wanted: DownloadSettings) -> Path | None:
    """The folder that holds everything, if there is one: as fetched, or the inner folder itself was given."""
    return next((place for place in (wanted.dir, wanted.dir.parent) if not _missing(place, wanted)), None)


def _missing(place: Path, wanted: DownloadSettings) -> list[str]:
    return [mark for mark in wanted.marks if not _has_content(place / mark)]


def _has_content(mark: Path) -> bool:
    return any(mark.iterdir()) if mark.is_dir() else mark.is_file() and mark.stat().st_size > 0


def _archive(archive: ArchiveSettings, downloads: Path, settings: FetchSettings, stages: Stages) -> Path:
    """A local file, or what was downloaded earlier, or a download."""
    local = _local(archive, settings)
    if local is not None:
        return local
    path = downloads / archive.file
    if path.is_file():
        return path
    try:
        with stages.stage(f"download {archive.file}") as counter:
            download(
                archive.urls,
                path,
                size=archive.bytes,
                sha256=archive.sha256,
                max_bytes=settings.max_bytes,
                tries=settings.tries,
                timeout_s=settings.timeout_s,
                pause_s=settings.pause_s,
                progress=lambda done, total: counter.count(done >> 20, total >> 20),
            )
    except UserError as error:
        raise UserError(f"{error}\n\n{by_hand(settings.download)}") from error
    return path


def _local(archive: ArchiveSettings, settings: FetchSettings) -> Path | None:
    given = settings.archive
    if given is None:
        return None
    if given.is_dir():
        return given / archive.file if (given / archive.file).is_file() else None
    alone = len(settings.download.archives) == 1
    return given if alone or given.name == archive.file else None


def _check(archive: ArchiveSettings, path: Path, wanted: DownloadSettings, stages: Stages) -> str:
    try:
        digest = check_content(path, archive.bytes, archive.sha256)
    except UserError as error:
        raise UserError(f"{path}: {error} Remove it and fetch again.\n\n{by_hand(wanted)}") from error
    if archive.sha256 is None:
        stages.log(f"  {archive.file}: no hash is known for it; this one has SHA-256 {digest}")
    return digest


def _unpack_into_place(
    archives: dict[str, Path], hashes: dict[str, str], settings: FetchSettings, stages: Stages
) -> None:
    """Unpacks beside the place and renames, so that a half-unpacked data set is never read."""
    wanted = settings.download
    staging = wanted.dir.with_name(f".{wanted.dir.name}.unpacking")
    shutil.rmtree(staging, ignore_errors=True)  # of a start that was killed; this one holds the lock
    try:
        for archive in wanted.archives:
            with stages.stage(f"unpack {archive.file}"):
                unpack(
                    archives[archive.file],
                    staging / archive.into,
                    max_bytes=settings.max_bytes,
                    max_files=settings.max_files,
                )
        if missing := _missing(staging, wanted):
            raise UserError(
                f"{', '.join(str(path) for path in archives.values())}: {', '.join(missing)} is not inside, so this is "
                f"not the whole data set {wanted.name}.\n\n{by_hand(wanted)}"
            )
        atomic_write(staging / NOTE, json.dumps({"name": wanted.name, "sha256": hashes}, indent=1) + "\n")
        if wanted.dir.exists():
            wanted.dir.rmdir()  # it is empty
        staging.replace(wanted.dir)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
