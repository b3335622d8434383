"""Settings of ``partcraft fetch``."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.core.settings import NonNegative, PathSettings, Positive, Rate, UserPath


@dataclass(frozen=True)
class ArchiveSettings:
    """One archive of a published data set.

    Attributes:
        file: its name.
        urls: where it is, best first.
        bytes, sha256: what it is known by; None if unknown.
        into: folder inside the data set's that it is unpacked to.
    """

    file: str
    urls: tuple[str, ...]
    bytes: Positive | None
    sha256: str | None
    into: UserPath


@dataclass(frozen=True)
class DownloadSettings:
    """A published data set as it is fetched.

    Attributes:
        name: of the data set's configuration.
        dir: where it goes.
        marks: files and folders that show that it is there.
        page: where a person finds it.
        archives: what it consists of.
    """

    name: str
    dir: UserPath
    marks: tuple[str, ...]
    page: str
    archives: tuple[ArchiveSettings, ...]


@dataclass(frozen=True)
class FetchSettings:
    """``partcraft fetch``.

    Attributes:
        download: the data set.
        archive: local archive, or folder of archives; None downloads.
        keep_archives: whether downloaded archives stay after unpacking.
        tries, timeout_s, pause_s: of each download; see ``data.download``.
        max_bytes, max_files: upper limits of what is downloaded and unpacked.
        paths: where run folders are.
    """

    download: DownloadSettings
    archive: UserPath | None
    keep_archives: bool
    tries: Positive
    timeout_s: Rate
    pause_s: NonNegative
    max_bytes: Positive
    max_files: Positive
    paths: PathSettings
