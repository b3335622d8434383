"""Files are replaced whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_path, atomic_write


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_bytes_and_text_are_written_and_folders_made(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a" / "b" / "data.bin", b"\x00\xff")
    atomic_write(str(tmp_path / "a" / "note.txt"), "ä\n", sync=False)
    assert (tmp_path / "a" / "b" / "data.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a" / "note.txt").read_bytes() == "ä\n".encode()
    assert names(tmp_path / "a") == ["b", "note.txt"]


def test_an_older_file_is_replaced(tmp_path: Path) -> None:
    for text in ("old and longer", "new"):
        atomic_write(tmp_path / "file", text)
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    atomic_write(tmp_path / "file", "old")

    def interrupted() -> None:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(type(error)):
        interrupted()
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_the_temporary_name_is_hidden_lies_beside_and_keeps_the_suffix(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "picture.png") as temporary:
        temporary.write_bytes(b"")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".")
        assert temporary.suffix == ".png"
        assert not (tmp_path / "picture.png").exists()


def test_the_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        atomic_write(tmp_path / "shared", "")
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_said_and_the_old_file_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "file", "old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"disk is full: .*file could not be written \(\d+\.\d MB free\)"):
        atomic_write(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file"]


def test_a_full_disk_is_recognised_in_the_words_of_writers_in_rust(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="disk is full"), atomic_path(tmp_path / "file"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


def test_an_unexplained_failure_on_a_full_disk_is_the_disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    message = "[enforce fail at inline_container.cc:672] . unexpected pos 704 vs 598"  # torch.save on a full disk

    def fail() -> None:
        with atomic_path(tmp_path / "file"):
            raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="unexpected pos"):
        fail()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4096))
    with pytest.raises(UserError, match="disk is full"):
        fail()


def test_a_place_that_cannot_hold_the_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written: .*Choose a folder"):
        atomic_write(tmp_path / "file" / "below", "")


def test_an_error_of_the_caller_is_not_dressed_up(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        (tmp_path / "missing").read_bytes()
