"""``partcraft fetch`` against a local server: whole, broken, wrong and hostile archives."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import json
import lzma
import re
import socket
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from miniatures import write_cub, write_dogs
from partcraft_lit.commands import fetch as verb
from partcraft_lit.commands.fetch.fetch import fetch
from partcraft_lit.commands.fetch.settings import ArchiveSettings, DownloadSettings, FetchSettings
from partcraft_lit.config import compose as config
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import PathSettings
from partcraft_lit.data.cub import Cub
from partcraft_lit.data.dogs import Dogs
from partcraft_lit.data.download import download
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.data.unpack import unpack


@dataclass
class Server:
    """What a server has, how it behaves, and what it was asked for.

    Attributes:
        files: path -> content.
        cut: numbers of bytes after which the next answers break off, used up one by one.
        ranges: whether it continues downloads.
        statuses: answers with these codes first.
        asked: (path, Range header) of each request.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    cut: list[int] = field(default_factory=list)
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append((self.path, self.headers.get("Range")))
            content = state.files.get(self.path)
            code = state.statuses.pop(0) if state.statuses else 200 if content is not None else 404
            if code != 200 or content is None:
                self.send_error(code)
                return
            tag = hashlib.md5(content).hexdigest()
            same = self.headers.get("If-Range", tag) == tag
            asked = self.headers.get("Range") if state.ranges and same else None
            start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
            if asked and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("ETag", tag)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            most = state.cut.pop(0) if state.cut else len(content)
            self.wfile.write(content[start : start + most])

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{listening.server_address[1]}"
    yield state
    listening.shutdown()
    listening.server_close()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """CUB's archive in small."""
    root = write_cub(tmp_path_factory.mktemp("cub"), per_species=2, size=32)
    return tar_of(root)


def tar_of(root: Path) -> bytes:
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as tar:
        tar.add(root, root.name)
    return written.getvalue()


def tar_with(*members: tuple[str, bytes, str]) -> bytes:
    """A tar of (type, name, link target) members."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w") as tar:
        for name, kind, target in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname, info.size = kind, target, 3 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"abc"))
    return written.getvalue()


@pytest.fixture
def settings(server: Server, archive: bytes, tmp_path: Path) -> FetchSettings:
    """CUB's own settings, with the small archive on the local server."""
    server.files["/CUB.tgz"] = archive
    values = config.plain(config.compose("fetch", ["dataset=cub", f"dataset.dir={tmp_path / 'data' / 'cub'}"]))
    given = verb.check(values)
    (real,) = given.download.archives
    small = replace(real, urls=(f"{server.url}/CUB.tgz",), bytes=len(archive), sha256=sha256(archive))
    return replace(given, download=replace(given.download, archives=(small,)), tries=3, timeout_s=5.0, pause_s=0.0)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def with_archive(settings: FetchSettings, **changed: object) -> FetchSettings:
    (one,) = settings.download.archives
    return replace(settings, download=replace(settings.download, archives=(replace(one, **changed),)))


# --- whole ---------------------------------------------------------------------------------------------------


def test_fetched_data_is_read_and_a_second_start_asks_nobody(
    settings: FetchSettings, server: Server, tmp_path: Path
) -> None:
    result = fetch(settings, tmp_path / "run")
    assert len(Cub(settings.download.dir, "all")) == 6
    assert json.loads((tmp_path / "run" / "fetched.json").read_text()) == result
    assert list(result["archives"].values()) == [settings.download.archives[0].sha256]
    left = sorted(path.name for path in settings.download.dir.parent.rglob("*") if "CUB" in path.name)
    assert left == ["CUB_200_2011"]  # neither archive nor half a folder
    asked = len(server.asked)
    assert fetch(settings, tmp_path / "again")["dir"] == str(settings.download.dir)
    assert len(server.asked) == asked == 1


def test_data_that_was_unpacked_by_hand_is_found(settings: FetchSettings, server: Server, tmp_path: Path) -> None:
    root = write_cub(tmp_path / "mine", per_species=1, size=32)
    for place in (root, root.parent):
        own = replace(settings, download=replace(settings.download, dir=place))
        fetch(own, tmp_path / "run")
    assert server.asked == []


def test_archives_stay_if_wanted(settings: FetchSettings, tmp_path: Path) -> None:
    fetch(replace(settings, keep_archives=True), tmp_path)
    assert (settings.download.dir.parent / "downloads" / "cub" / "CUB_200_2011.tgz").is_file()


@pytest.mark.parametrize("as_folder", [False, True])
def test_a_local_archive_needs_no_network_and_stays(
    settings: FetchSettings, server: Server, archive: bytes, tmp_path: Path, as_folder: bool
) -> None:
    path = tmp_path / "usb" / ("CUB_200_2011.tgz" if as_folder else "renamed.tgz")
    path.parent.mkdir()
    path.write_bytes(archive)
    fetch(replace(settings, archive=path.parent if as_folder else path), tmp_path / "run")
    assert len(Cub(settings.download.dir, "all")) == 6 and path.exists() and server.asked == []


# --- interrupted ---------------------------------------------------------------------------------------------


def test_a_broken_connection_is_continued_where_it_broke(
    settings: FetchSettings, server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.cut = [1000, 500]
    fetch(settings, tmp_path)
    assert [asked for _, asked in server.asked] == [None, "bytes=1000-", "bytes=1500-"]
    assert len(Cub(settings.download.dir, "all")) == 6


def test_the_next_start_continues_what_an_earlier_one_left(
    settings: FetchSettings, server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.cut = [1000]
    with pytest.raises(
        UserError, match=r"after 1,000 of [\d,]+ bytes\n1,000 bytes are kept; the same command continues"
    ):
        fetch(replace(settings, tries=1), tmp_path)
    assert not settings.download.dir.exists()
    fetch(settings, tmp_path)
    assert server.asked[-1][1] == "bytes=1000-"


def test_a_server_that_cannot_continue_sends_all_again(settings: FetchSettings, server: Server, tmp_path: Path) -> None:
    server.cut, server.ranges = [1000], False
    fetch(settings, tmp_path)
    assert [asked for _, asked in server.asked] == [None, "bytes=1000-"]


def test_a_file_that_was_replaced_meanwhile_is_not_glued_to_the_old_half(server: Server, tmp_path: Path) -> None:
    server.files["/x"], server.cut = b"old content!", [4]
    arguments = {"size": None, "sha256": None, "max_bytes": 100, "timeout_s": 5.0, "pause_s": 0.0}
    with pytest.raises(UserError, match="after 4 of 12"):
        download([f"{server.url}/x"], tmp_path / "x", tries=1, **arguments)
    server.files["/x"] = b"new content, longer"
    download([f"{server.url}/x"], tmp_path / "x", tries=1, **arguments)
    assert (tmp_path / "x").read_bytes() == b"new content, longer"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(
    settings: FetchSettings, server: Server, tmp_path: Path
) -> None:
    server.statuses = [503, 429]
    fetch(settings, tmp_path)
    assert len(server.asked) == 3
    gone = with_archive(settings, urls=(f"{server.url}/gone", f"{server.url}/CUB.tgz"))
    gone = replace(gone, download=replace(gone.download, dir=tmp_path / "other"))
    server.asked.clear()
    fetch(gone, tmp_path)  # the second address has it
    assert [path for path, _ in server.asked] == ["/gone", "/CUB.tgz"]


# --- wrong ---------------------------------------------------------------------------------------------------


def test_without_a_network_it_says_how_to_do_it_by_hand(settings: FetchSettings, tmp_path: Path) -> None:
    nowhere = with_archive(settings, urls=("http://127.0.0.1:9/CUB.tgz",))
    with pytest.raises(UserError) as caught:
        fetch(nowhere, tmp_path)
    said = str(caught.value)
    assert "could not be downloaded" in said and "http://127.0.0.1:9/CUB.tgz: " in said
    assert "https://data.caltech.edu/records/65de6-vp158" in said
    assert "partcraft fetch dataset=cub archive=/path/to/folder" in said
    assert str(settings.download.dir / "CUB_200_2011" / "images.txt") in said


def test_wrong_content_is_told_and_not_kept(
    settings: FetchSettings, server: Server, archive: bytes, tmp_path: Path
) -> None:
    server.files["/CUB.tgz"] = archive[:-1] + b"x"
    with pytest.raises(
        UserError, match=r"damaged or another file: its SHA-256 is [0-9a-f]{64}, [0-9a-f]{64} is wanted"
    ):
        fetch(settings, tmp_path)
    assert len(server.asked) == 1  # it would come again
    server.files["/CUB.tgz"] = archive + b"more"
    with pytest.raises(UserError, match=r"the server has [\d,]+ bytes, [\d,]+ are wanted"):
        fetch(settings, tmp_path)
    assert not settings.download.dir.exists()
    assert not list((settings.download.dir.parent / "downloads" / "cub").glob("*.part"))


def test_a_local_archive_that_is_not_the_one(settings: FetchSettings, archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "CUB_200_2011.tgz"
    path.write_bytes(archive[: len(archive) // 2])
    with pytest.raises(UserError, match=r"is truncated: it has [\d,]+ bytes, [\d,]+ are wanted.*\n\nWithout a network"):
        fetch(replace(settings, archive=path), tmp_path / "run")
    assert path.exists()  # it is the user's


def test_a_truncated_archive_of_unknown_hash(settings: FetchSettings, archive: bytes, tmp_path: Path) -> None:
    path = tmp_path / "CUB_200_2011.tgz"
    path.write_bytes(archive[: len(archive) // 2])
    unknown = replace(with_archive(settings, bytes=None, sha256=None), archive=path)
    with pytest.raises(UserError, match="is truncated or damaged"):
        fetch(unknown, tmp_path / "run")
    assert not settings.download.dir.exists()
    content = bytearray(gzip.compress(gzip.decompress(archive), compresslevel=0))  # stored: only the checksum tells
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="is truncated or damaged"):
        fetch(unknown, tmp_path / "run")
    path.write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="is not a tar or zip archive"):
        fetch(unknown, tmp_path / "run")


def test_an_archive_without_a_split_file(settings: FetchSettings, tmp_path: Path) -> None:
    root = write_cub(tmp_path / "made", per_species=1, size=32)
    (root / "images.txt").unlink()
    path = tmp_path / "CUB_200_2011.tgz"
    path.write_bytes(tar_of(root))
    unknown = replace(with_archive(settings, bytes=None, sha256=None), archive=path)
    with pytest.raises(UserError, match=r"CUB_200_2011/images\.txt is not inside, so this is not the whole data set"):
        fetch(unknown, tmp_path / "run")
    assert not settings.download.dir.exists()


def test_nothing_of_the_user_is_replaced(settings: FetchSettings, server: Server, tmp_path: Path) -> None:
    settings.download.dir.mkdir(parents=True)
    (settings.download.dir / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"is not empty, and it is not the data set cub.*Nothing is replaced"):
        fetch(settings, tmp_path)
    assert (settings.download.dir / "thesis.txt").read_text() == "years of work" and server.asked == []


def test_options_of_the_command(tmp_path: Path) -> None:
    def check(*overrides: str) -> FetchSettings:
        return verb.check(config.plain(config.compose("fetch", overrides)))

    with pytest.raises(UserError, match=r"dataset has to be given: dataset=NAME\. Options: .*cub"):
        check()
    with pytest.raises(UserError, match=r"nothing that can be fetched\. Those that can: cub"):
        check("dataset=creatures")
    with pytest.raises(UserError, match=r"archive=.*nowhere\.tgz: there is no such file"):
        check("dataset=cub", f"archive={tmp_path / 'nowhere.tgz'}")
    with pytest.raises(UserError, match="only http and https"):
        download(["file:///etc/passwd"], tmp_path / "x", **UNKNOWN)


# --- lying servers ---------------------------------------------------------------------------------------------

UNKNOWN = {"size": None, "sha256": None, "max_bytes": 100_000, "tries": 1, "timeout_s": 0.3, "pause_s": 0.0}


@pytest.fixture
def liar() -> Iterator[Callable[[Iterable[bytes]], str]]:
    """Starts servers that answer every request with these bytes, one piece after the other; gives their addresses."""
    servers: list[socket.socket] = []

    def serve(listening: socket.socket, answer: Iterable[bytes]) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, suppress(OSError):
                    connection.recv(10_000)
                    for piece in answer:
                        connection.sendall(piece)

    def start(answer: Iterable[bytes]) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        servers.append(listening)
        threading.Thread(target=serve, args=(listening, answer), daemon=True).start()
        return f"http://127.0.0.1:{listening.getsockname()[1]}/x"

    yield start
    for listening in servers:
        listening.close()


class Drip:
    """One byte after the other, slowly and for ever."""

    def __init__(self, first: bytes, pause_s: float, piece: bytes = b"x") -> None:
        self._first, self._pause_s, self._piece = first, pause_s, piece

    def __iter__(self) -> Iterator[bytes]:
        yield self._first
        while True:
            time.sleep(self._pause_s)
            yield self._piece


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Drip(OK + b"\r\n", 0, bytes(10_000)), "the server sends more than 100,000 bytes"),
        (Drip(OK + b"Transfer-Encoding: chunked\r\n\r\n", 0, b"2710\r\n" + bytes(10_000) + b"\r\n"), "sends more than"),
        ([OK + b"Content-Length: 100001\r\n\r\n"], "the server has 100,001 bytes, at most 100,000 are taken"),
        (Drip(OK + b"\r\n", 0.02), r"\d+ bytes in \d s"),
        (Drip(OK + b"X: ", 0.02), "no complete answer after 1 s"),
        ([b"HTTP/1.1 302 Found\r\nLocation: http://[broken/x\r\n\r\n"], "Invalid IPv6 URL"),
        ([b"HTTP/1.1 302 Found\r\nLocation: ftp://127.0.0.1/x\r\n\r\n"], "redirects to ftp://127.0.0.1/x"),
        ([b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n"], "'file:///etc/passwd' is not allowed"),
        ([b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 7-9/10\r\n\r\nabc"], "continues at byte 7 instead of 0"),
        ([b"garbage\x1b[2J\r\n\r\n"], "garbage\N{REPLACEMENT CHARACTER}"),
        ([b""], "closed connection without response"),
    ],
)
def test_a_server_that_lies_is_told_and_ends(
    liar: Callable[[Iterable[bytes]], str], tmp_path: Path, answer: Iterable[bytes], said: str
) -> None:
    url = liar(answer)
    began = time.monotonic()
    with pytest.raises(UserError, match=rf"x could not be downloaded:\n  {re.escape(url)}: (.|\n)*{said}"):
        download([url], tmp_path / "x", **UNKNOWN)
    assert time.monotonic() - began < 5
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("length", ["abc", "-1", "²", "9" * 30])
def test_a_length_that_is_no_number_is_no_length(
    liar: Callable[[Iterable[bytes]], str], tmp_path: Path, length: str
) -> None:
    answer = [OK + f"Content-Length: {length}\r\nConnection: close\r\n\r\n".encode("latin-1") + b"content"]
    download([liar(answer)], tmp_path / "x", **UNKNOWN)
    assert (tmp_path / "x").read_bytes() == b"content"


def test_a_mirror_of_another_length_leaves_the_first_half(server: Server, tmp_path: Path) -> None:
    content = bytes(range(256)) * 8
    server.files, server.cut = {"/good": content, "/bad": b"another file"}, [1000]
    known = {**UNKNOWN, "size": len(content), "sha256": sha256(content)}
    with pytest.raises(UserError, match="1,000 bytes are kept"):
        download([f"{server.url}/good"], tmp_path / "x", **known)
    download([f"{server.url}/bad", f"{server.url}/good"], tmp_path / "x", **known)
    assert server.asked[-1] == ("/good", "bytes=1000-")
    assert (tmp_path / "x").read_bytes() == content


def test_halves_of_two_files_are_fetched_again(server: Server, tmp_path: Path) -> None:
    """The wrong first half came from elsewhere: the good server is asked for the whole file."""
    content = bytes(range(256)) * 8
    server.files = {"/good": content}
    (tmp_path / "x.part").write_bytes(bytes(1000))
    download(
        [f"{server.url}/good"],
        tmp_path / "x",
        **{**UNKNOWN, "size": len(content), "sha256": sha256(content), "tries": 2},
    )
    assert (tmp_path / "x").read_bytes() == content


# --- hostile -------------------------------------------------------------------------------------------------

LIMITS = {"max_bytes": 10_000, "max_files": 5}


@pytest.mark.parametrize("name", ["../escaped", "/tmp/escaped", "a/../../escaped", "a\\..\\..\\escaped", "C:/escaped"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    tar, zipped = tmp_path / "evil.tar", tmp_path / "evil.zip"
    tar.write_bytes(tar_with((name, tarfile.REGTYPE, "")))
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr(name, "abc")
    for archive in (tar, zipped):
        with pytest.raises(UserError, match="a path that leads out of its folder"):
            unpack(archive, tmp_path / "deep" / "out", **LIMITS)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.FIFOTYPE, "a device"),
    ],
)
def test_only_files_and_folders_come_out(tmp_path: Path, kind: bytes, said: str) -> None:
    path = tmp_path / "evil.tar"
    path.write_bytes(tar_with(("x", kind, "/etc/passwd"), ("x/y", tarfile.REGTYPE, "")))
    with pytest.raises(UserError, match=f"holds {said}, 'x'"):
        unpack(path, tmp_path / "out", **LIMITS)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_link_in_a_zip(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("x")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as file:
        file.writestr(info, "/etc/passwd")
    with pytest.raises(UserError, match="holds a link, 'x'"):
        unpack(tmp_path / "evil.zip", tmp_path / "out", **LIMITS)


def test_bombs_are_stopped_by_size_and_by_number(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "large.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros", bytes(1_000_000))
    with pytest.raises(UserError, match=r"unpacks to more than 5 files or 0\.0 GB"):
        unpack(tmp_path / "large.zip", tmp_path / "out", **LIMITS)
    assert not (tmp_path / "out" / "zeros").exists()
    (tmp_path / "many.tar").write_bytes(tar_with(*((f"f{index}", tarfile.REGTYPE, "") for index in range(6))))
    with pytest.raises(UserError, match="unpacks to more than 5 files"):
        unpack(tmp_path / "many.tar", tmp_path / "out", **LIMITS)


def test_an_archive_of_zeros_is_no_data_set(settings: FetchSettings, tmp_path: Path) -> None:
    """Ten blocks of zeros are an empty tar; with folders as marks it used to count as the data set."""
    path = tmp_path / "CUB_200_2011.tgz"
    path.write_bytes(bytes(10_240))
    unknown = replace(with_archive(settings, bytes=None, sha256=None, into=Path("images")), archive=path)
    marked = replace(unknown, download=replace(unknown.download, marks=("images",)))
    with pytest.raises(UserError, match=r"CUB_200_2011\.tgz holds no files"):
        fetch(marked, tmp_path / "run")
    assert not settings.download.dir.exists()


@pytest.mark.parametrize("members", [("x", "x/y"), ("x/y", "x")])
@pytest.mark.parametrize("ending", ["tar", "zip"])
def test_a_file_and_a_folder_of_one_name(tmp_path: Path, members: tuple[str, str], ending: str) -> None:
    path = tmp_path / f"twice.{ending}"
    if ending == "tar":
        path.write_bytes(tar_with(*((name, tarfile.REGTYPE, "") for name in members)))
    else:
        with zipfile.ZipFile(path, "w") as file:
            for name in members:
                file.writestr(name, "abc")
    with pytest.raises(UserError, match="holds a file and a folder of the name 'x'"):
        unpack(path, tmp_path / "out", **LIMITS)


@pytest.mark.parametrize(("place", "value", "said"), [(6, 1, "is encrypted"), (8, 97, "does not know .method 97.")])
def test_a_zip_that_python_cannot_open(tmp_path: Path, place: int, value: int, said: str) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("a.txt", "abc")
    content = bytearray((tmp_path / "x.zip").read_bytes())
    central = content.index(b"PK\x01\x02")
    content[place] = content[central + place + 2] = value  # flags and method, in the local and the central header
    (tmp_path / "x.zip").write_bytes(content)
    with pytest.raises(UserError, match=said):
        unpack(tmp_path / "x.zip", tmp_path / "out", **LIMITS)


def test_damage_anywhere_is_a_message(tmp_path: Path) -> None:
    """Also in the middle of a plain tar, where `tarfile` takes a broken header for the end."""
    members = [(f"f{index}", tarfile.REGTYPE, "") for index in range(4)]
    plain = tar_with(*members)
    broken = {
        "header.tar": plain[:1024] + bytes([plain[1024] ^ 1]) + plain[1025:],
        "cut.tar": plain[:2048],
        "half.tar": plain[: 2048 + 100],
        "flipped.tar.bz2": bz2.compress(plain)[:40] + b"\0" + bz2.compress(plain)[41:],
        "cut.tar.bz2": bz2.compress(plain)[:-10],
        "cut.tar.xz": lzma.compress(plain)[:-10],
        "cut.tgz": gzip.compress(plain)[:-4],
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="damaged"):
            unpack(tmp_path / name, tmp_path / f"out {name}", **LIMITS)
    negative = tarfile.TarInfo("x")
    negative.pax_headers = {"size": "-1024"}
    with tarfile.open(tmp_path / "loop.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(negative)
    with pytest.raises(UserError, match="damaged"):
        unpack(tmp_path / "loop.tar", tmp_path / "out loop", **LIMITS)


def test_every_kind_of_archive_comes_out_alike(tmp_path: Path) -> None:
    content = {"a/b.txt": b"one", "c.txt": b"two"}
    modes = {"x.tar": "w", "x.tgz": "w:gz", "x.tar.bz2": "w:bz2", "x.tar.xz": "w:xz"}
    for name, mode in modes.items():
        with tarfile.open(tmp_path / name, mode) as tar:
            for member, data in content.items():
                info = tarfile.TarInfo(member)
                info.size, info.mode, info.uid = len(data), 0o4777, 12345
                tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        for member, data in content.items():
            file.writestr(member, data)
    for name in (*modes, "x.zip"):
        out = tmp_path / f"out {name}"
        assert unpack(tmp_path / name, out, **LIMITS) == 2
        assert {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*.txt")} == content
        assert (out / "c.txt").stat().st_mode & 0o7000 == 0  # no set-user-id bit


def test_the_archives_of_stanford_dogs(tmp_path: Path) -> None:
    root = write_dogs(tmp_path / "made", per_breed=2, size=32)
    usb = tmp_path / "usb"
    usb.mkdir()
    contents = {"images.tar": ["Images"], "annotation.tar": ["Annotation"]}
    contents["lists.tar"] = sorted(path.name for path in root.glob("*.mat"))
    for name, members in contents.items():
        with tarfile.open(usb / name, "w") as tar:
            for member in members:
                tar.add(root / member, member)
    given = verb.check(
        config.plain(config.compose("fetch", ["dataset=dogs", f"dataset.dir={tmp_path / 'data' / 'dogs'}"]))
    )
    archives = tuple(replace(one, bytes=None, sha256=None) for one in given.download.archives)
    settings = replace(given, archive=usb, download=replace(given.download, archives=archives))
    fetch(settings, tmp_path / "run")
    assert len(Dogs(tmp_path / "data" / "dogs", "all")) == 6
    with pytest.raises(
        UserError, match=r"dogs consists of images\.tar, annotation\.tar, lists\.tar; give one of these"
    ):
        verb.check(
            config.plain(config.compose("fetch", ["dataset=dogs", f"archive={usb.parent / 'made' / 'file_list.mat'}"]))
        )


def test_the_archives_of_sims4_faces(tmp_path: Path) -> None:
    usb = tmp_path / "usb"
    usb.mkdir()
    for kind in ("fem", "masc"):
        picture = tmp_path / f"{kind}.png"
        Image.new("RGB", (9, 9)).save(picture)
        with tarfile.open(usb / f"{kind}.tar", "w") as tar:
            tar.add(picture, f"./{kind}_0001.png")
    overrides = ["dataset=sims4_faces", f"dataset.dir={tmp_path / 'data' / 'sims4'}", f"archive={usb}"]
    values = config.plain(config.compose("fetch", overrides))
    fetch(verb.check(values), tmp_path / "run")
    source = ImageFolder(tmp_path / "data" / "sims4", labels="folder")
    assert [source.name(index) for index in range(2)] == ["fem/fem_0001.png", "masc/masc_0001.png"]


def test_two_archives_in_folders_of_their_own(tmp_path: Path) -> None:
    """As Stanford Dogs and sims4-faces come: several archives, some to be unpacked into a folder."""
    usb = tmp_path / "usb"
    usb.mkdir()
    for name in ("a.tar", "b.tar"):
        (usb / name).write_bytes(tar_with((f"{name[0]}.txt", tarfile.REGTYPE, "")))
    archives = tuple(
        ArchiveSettings(f"{name}.tar", ("http://127.0.0.1:9/x",), None, None, Path(name)) for name in ("a", "b")
    )
    wanted = DownloadSettings("two", tmp_path / "data" / "two", ("a/a.txt", "b/b.txt"), "https://example.org", archives)
    paths = PathSettings(logs=tmp_path, data=tmp_path, store=tmp_path)
    settings = FetchSettings(wanted, usb, False, 1, 1.0, 0.0, 10_000, 5, paths)
    fetch(settings, tmp_path / "run")
    assert (wanted.dir / "a" / "a.txt").read_text() == (wanted.dir / "b" / "b.txt").read_text() == "abc"
    assert sorted(path.name for path in usb.iterdir()) == ["a.tar", "b.tar"]
