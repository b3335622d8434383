"""Mutated images, masks, archives and servers that lie: ``python tools/fuzz_files.py [--images N] [--archives N]``.

Each file is read or refused with a sentence, within seconds. What is read must be right: pixels do not depend on how
the file was opened, a mask is the part that was drawn, an archive gives its own files and nothing beside them, a
download with a known hash is that file. Anything else is printed, and the exit code is 1. ``--cases FOLDER`` prints one
hash of how a folder of images and masks is read, to compare two versions.
"""

from __future__ import annotations

import argparse
import bz2
import gzip
import hashlib
import io
import lzma
import multiprocessing
import os
import random
import shutil
import socket
import tarfile
import tempfile
import threading
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import decode_image, decoding_rules, image_size
from partcraft_lit.data.download import download
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.data.mask_files import binary_mask
from partcraft_lit.data.unpack import unpack

#: No single file may take longer.
SECONDS = 20.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--archives", type=int, default=200, help="half of them are files, half come from servers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=Path, help="only print the hash of how this folder is read")
    given = parser.parse_args(arguments)
    if given.cases is not None:
        print(readings_hash(given.cases))
        return 0
    draw = random.Random(given.seed)
    problems: list[str] = []
    pool: list[Any] = []
    with tempfile.TemporaryDirectory() as name:
        for title, check in (
            ("images", lambda folder: check_images(folder, given.images, draw, pool)),
            ("masks", lambda folder: check_masks(folder, given.images // 4, draw)),
            ("archives", lambda folder: check_archives(folder, given.archives // 2, draw, pool)),
            ("servers", lambda folder: check_servers(folder, given.archives // 2, draw, pool)),
        ):
            folder = Path(name, title)
            folder.mkdir()
            began = time.monotonic()
            outcomes, found = check(folder)
            counted = ", ".join(f"{number} {outcome}" for outcome, number in sorted(outcomes.items()))
            print(f"{title}: {counted}; {len(found)} problems, {time.monotonic() - began:.0f} s", flush=True)
            problems += found
    for one in pool:
        one.terminate()
    for problem in problems:
        print(problem)
    return 1 if problems else 0


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A few bytes flipped, zeroed, cut out, doubled or put in, or the end cut off; sometimes nothing."""
    data = bytearray(content)
    for _ in range(draw.choice((0, 1, 1, 1, 2, 5, 20))):
        if not data:
            break
        # Headers decide more than pixels do.
        place = draw.randrange(min(len(data), 200)) if draw.random() < 0.5 else draw.randrange(len(data))
        length = draw.choice((1, 1, 2, 4, 40))
        match draw.randrange(6):
            case 0:
                data[place] ^= 1 << draw.randrange(8)
            case 1:
                data[place : place + length] = draw.randbytes(length)
            case 2:
                data[place : place + length] = bytes([draw.choice((0, 255))]) * length
            case 3:
                del data[place : place + length]
            case 4:
                data[place:place] = data[place : place + length] * draw.choice((1, 3))
            case 5:
                del data[draw.randrange(len(data)) :]
    return bytes(data)


def in_time(work: Callable[..., str], *arguments: Any, pool: list[Any]) -> str:
    """What ``work`` returns, from another process that is given up after ``SECONDS``."""
    if not pool:
        pool.append(multiprocessing.get_context("spawn").Pool(1))
        pool[0].apply(int)  # its imports do not count
    try:
        return str(pool[0].apply_async(work, arguments).get(SECONDS))
    except multiprocessing.TimeoutError:
        pool.pop().terminate()
        return f"PROBLEM no end within {SECONDS:.0f} s"


# --- images ---------------------------------------------------------------------------------------------------


def sample_images() -> dict[str, tuple[bytes, np.ndarray | None]]:
    """Name -> file, and its pixels (height, width, 3) where the format keeps them."""
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), np.ones((5, 5, 1), dtype=np.uint8))  # 30 x 40
    rgb = Image.fromarray(pixels)
    grey = rgb.convert("L")
    turned = Image.Exif()
    turned[0x0112] = 6
    cut = rgb.convert("RGBA")
    cut.putalpha(Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) * 6, (30, 1))))
    made: list[tuple[str, Image.Image, dict[str, Any], bool]] = [
        ("rgb.png", rgb, {}, True),
        ("turned.png", rgb, {"exif": turned}, False),
        ("rgba.png", cut, {}, False),
        ("palette.png", rgb.quantize(32), {"transparency": 3}, False),
        ("grey.png", grey, {}, False),
        ("grey_alpha.png", cut.convert("LA"), {}, False),
        ("bilevel.png", grey.convert("1"), {}, False),
        ("deep.png", Image.fromarray(np.array(grey).astype(np.uint16) * 257), {}, False),
        ("a.jpg", rgb, {"quality": 90}, False),
        ("turned.jpg", rgb, {"exif": turned, "progressive": True}, False),
        ("cmyk.jpg", rgb.convert("CMYK"), {}, False),
        ("a.webp", rgb, {"lossless": True}, True),
        ("a.gif", rgb.quantize(16), {"save_all": True, "append_images": [rgb.quantize(8)]}, False),
        ("a.tiff", rgb, {}, True),
        ("turned.tiff", grey, {"exif": turned}, False),
        ("lzw.tiff", rgb, {"compression": "tiff_lzw", "exif": turned}, False),
        ("float.tiff", Image.fromarray(np.array(grey).astype(np.float32)), {}, False),
        ("a.bmp", rgb, {}, True),
        ("a.tga", rgb, {}, True),
        ("a.ppm", rgb, {}, True),
        ("a.pcx", rgb, {}, True),
        ("a.sgi", rgb, {}, True),
        ("a.ico", rgb.resize((32, 32)), {}, False),
        ("a.jp2", rgb, {}, True),
        ("a.dds", rgb, {}, True),
    ]
    found: dict[str, tuple[bytes, np.ndarray | None]] = {}
    for name, image, options, exact in made:
        file = io.BytesIO()
        image.save(file, Image.registered_extensions()[Path(name).suffix], **options)
        found[name] = (file.getvalue(), pixels if exact else None)
    return found


def read_twice(path: str, exact: bytes | None) -> str:
    """ "read" or "refused"; by path and by bytes the same, with the size of the header."""
    file = Path(path)
    try:
        with decoding_rules():
            try:
                image = decode_image(file).pixels
            except UserError as error:
                str(error).encode()
                with suppress(UserError):
                    decode_image(io.BytesIO(file.read_bytes()))
                    return "PROBLEM by path refused, by bytes read"
                return "refused"
            again = decode_image(io.BytesIO(file.read_bytes())).pixels
        if image.dtype != torch.uint8 or image.shape[0] != 3 or min(image.shape[1:]) < 8:
            return f"PROBLEM {image.dtype} {tuple(image.shape)}"
        if not torch.equal(image, again):
            return "PROBLEM other pixels by path than by bytes"
        if image_size(file) != tuple(image.shape[1:]):
            return f"PROBLEM the header has {image_size(file)}, the pixels {tuple(image.shape[1:])}"
        if exact is not None and image.permute(1, 2, 0).numpy().tobytes() != exact:
            return "PROBLEM an intact file has other pixels"
    except Exception:
        return f"PROBLEM {traceback.format_exc()}"
    return "read"


def open_folder(path: str) -> str:
    """ "opened"; every entry is an image that can be read or has a reason."""
    folder = Path(path)
    try:
        source = ImageFolder(folder)
        names = {source.name(index) for index in range(len(source))} | {one.path for one in source.rejected}
        lost = {entry.name for entry in os.scandir(folder)} - names
        if lost or not all(one.reason for one in source.rejected):
            return f"PROBLEM neither image nor rejected: {sorted(lost)[:3]}"
        for index in range(len(source)):
            source.image(index)
    except Exception:
        return f"PROBLEM {traceback.format_exc()}"
    return f"opened with {len(source.rejected)} rejected"


def check_images(folder: Path, count: int, draw: random.Random, pool: list[Any]) -> tuple[Counter[str], list[str]]:
    samples, outcomes, problems = sample_images(), Counter[str](), list[str]()
    together = folder / "together"
    together.mkdir()
    for number in range(count):
        name = draw.choice(list(samples))
        content, pixels = samples[name]
        data = mutated(content, draw)
        path = together / f"{number:05d}_{name}"
        path.write_bytes(data)
        exact = pixels.tobytes() if pixels is not None and data == content else None
        outcome = in_time(read_twice, str(path), exact, pool=pool)
        outcomes[outcome.split()[0]] += 1
        if outcome.startswith("PROBLEM"):
            problems.append(f"{path.name} (seeded image {number}): {outcome}")
            path.unlink()
    for link, target in (("itself.png", "itself.png"), ("zero.png", "/dev/zero"), ("gone.jpg", "nowhere.jpg")):
        (together / link).symlink_to(target)
    (together / "loop").symlink_to("loop")
    os.mkfifo(together / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(together / "socket.png"))
    outcome = in_time(open_folder, str(together), pool=pool)
    outcomes["folder " + outcome.split()[0]] += 1
    if not outcome.startswith("opened"):
        problems.append(f"the folder of all images: {outcome}")
    return outcomes, problems


# --- masks ----------------------------------------------------------------------------------------------------


def random_mask(part: np.ndarray, draw: random.Random) -> tuple[str, Image.Image]:
    """A part, lighter than what is around it, in one of the forms that programs write."""
    ground, light = draw.choice(((0, 255), (0, 1), (0, draw.randrange(1, 256)), (draw.randrange(128), 255)))
    values = np.where(part, light, ground).astype(np.uint8)
    form = draw.choice(("L", "1", "P", "PA", "LA", "RGB", "RGBA", "cutout", "16", "edges", "colour"))
    if form == "1":
        return form, Image.fromarray(np.where(part, 255, 0).astype(np.uint8)).convert("1")
    if form in ("P", "PA"):
        indices = draw.sample(range(256), 2)
        image = Image.fromarray(np.where(part, indices[1], indices[0]).astype(np.uint8)).convert("P")
        palette = [draw.randrange(256) for _ in range(768)]
        for index, value in zip(indices, (ground, light), strict=True):
            palette[3 * index : 3 * index + 3] = [value] * 3
        image.putpalette(palette)
        return form, image
    if form in ("LA", "RGBA"):
        return form, Image.fromarray(values).convert(form)
    if form == "cutout":
        image = Image.new(draw.choice(("RGB", "L")), part.shape[::-1], draw.choice((0, 77, 255)))
        image.putalpha(Image.fromarray(np.where(part, 255, 0).astype(np.uint8)))
        return form, image
    if form == "16":
        return form, Image.fromarray(np.where(part, 65535, draw.choice((0, 300, 30_000))).astype(np.uint16))
    if form == "edges":  # smoothed: the outline at half of the range
        return form, Image.fromarray(np.where(part, 160 + values // 3, values // 4).astype(np.uint8))
    if form == "colour":
        colour = np.array([draw.randrange(128, 256), draw.randrange(256), draw.randrange(256)])
        return form, Image.fromarray((part[..., None] * colour).astype(np.uint8))
    return form, Image.fromarray(values).convert(form)


def check_masks(folder: Path, count: int, draw: random.Random) -> tuple[Counter[str], list[str]]:
    outcomes, problems = Counter[str](), []
    for number in range(count):
        part = np.zeros((20, 30), dtype=bool)
        top, left = draw.randrange(20), draw.randrange(30)
        part[top : top + draw.randrange(1, 20), left : left + draw.randrange(1, 30)] = True
        form, image = random_mask(part, draw)
        path = folder / f"{number}.png"
        image.save(path)
        try:
            read = binary_mask(path)
            right = np.array_equal(read, part)
            outcomes["read" if right else "WRONG"] += 1
            if not right:
                problems.append(f"mask {number} ({form}): {read.sum()} pixels instead of {part.sum()}")
        except UserError as error:
            outcomes["refused"] += 1
            if str(path) not in str(error):
                problems.append(f"mask {number} ({form}): the file is not named: {error}")
        except Exception:
            problems.append(f"mask {number} ({form}): {traceback.format_exc()}")
    return outcomes, problems


# --- archives -------------------------------------------------------------------------------------------------

MEMBERS = {"set/a.txt": b"one" * 500, "set/deep/b.bin": bytes(range(256)) * 9, "set/c.jpg": b"", "set/d": b"x"}


def sample_archives() -> dict[str, bytes]:
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for name, content in MEMBERS.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    zips = {}
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", method) as zipped:
            for name, content in MEMBERS.items():
                zipped.writestr(name, content)
        zips[f"{method}.zip"] = file.getvalue()
    tar_bytes = plain.getvalue()
    return {
        "a.tar": tar_bytes,
        "a.tgz": gzip.compress(tar_bytes),
        "a.tar.bz2": bz2.compress(tar_bytes),
        "a.tar.xz": lzma.compress(tar_bytes),
        "zeros.tar": bytes(10_240),
        **zips,
    }


def unpack_and_compare(path: str, folder: str, plain: bool) -> str:
    """ "unpacked" or "refused"; the files are those of the archive (a plain tar has no checksum of their bytes)."""
    target = Path(folder, "in", "target")
    try:
        try:
            unpack(Path(path), target, max_bytes=1_000_000, max_files=20)
            outcome = "unpacked"
        except UserError as error:
            str(error).encode()
            outcome = "refused"
        beside = {entry.name for place in (Path(folder), target.parent) for entry in place.iterdir()}
        if beside != {"in", "target"}:
            return f"PROBLEM files outside: {beside}"
        found = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()}
        same = found.keys() == MEMBERS.keys() and all(
            len(found[name]) == len(content) if plain else found[name] == content for name, content in MEMBERS.items()
        )
        return outcome if same or outcome == "refused" else f"PROBLEM other files: {sorted(found)}"
    except Exception:
        return f"PROBLEM {traceback.format_exc()}"


def check_archives(folder: Path, count: int, draw: random.Random, pool: list[Any]) -> tuple[Counter[str], list[str]]:
    samples, outcomes, problems = sample_archives(), Counter[str](), list[str]()
    for number in range(count):
        name = draw.choice(list(samples))
        path, into = folder / f"{number}_{name}", folder / f"out{number}"
        path.write_bytes(mutated(samples[name], draw))
        into.mkdir()
        outcome = in_time(unpack_and_compare, str(path), str(into), name.endswith(".tar"), pool=pool)
        outcomes[outcome.split()[0]] += 1
        if outcome.startswith("PROBLEM"):
            problems.append(f"{path.name}: {outcome}")
        shutil.rmtree(into, ignore_errors=True)
    return outcomes, problems


# --- servers --------------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 20
STATUSES = (*["200 OK"] * 6, "206 Partial", "206 Partial", "302 Found", "404 No", "416 Range", "503 Busy")
LENGTHS = ("", "", *[f"Content-Length: {value}" for value in ("{}", "{}", "abc", "-3", "9")])
RANGES = ("", "Content-Range: bytes {}-5119/5120", "Content-Range: bytes x-y/z", "Content-Range: bytes */1")
TAGS = ("", "ETag: a", 'ETag: W/"b"', "ETag: c")
ENCODINGS = ("", "", "", "Transfer-Encoding: chunked", "Content-Encoding: gzip")
PLACES = ("http://[x", "ftp://127.0.0.1/x", "file:///etc/passwd", "/again", "http://127.0.0.1:9/", "\u00e9", "")


def random_answer(draw: random.Random) -> Iterable[bytes]:
    """Pieces of an HTTP answer: status, headers and a body that need not agree."""
    status, start = draw.choice(STATUSES), draw.choice((0, 0, 100, 5000, 6000))
    body = draw.choice((CONTENT[start:], CONTENT, CONTENT[:1000], mutated(CONTENT, draw), CONTENT + b"more", b"<html>"))
    headers = [
        draw.choice(LENGTHS).format(len(body)),
        draw.choice(RANGES).format(start),
        draw.choice(TAGS),
        draw.choice(ENCODINGS),
    ]
    if status.startswith("302"):
        headers.append(f"Location: {draw.choice(PLACES)}")
    if draw.random() < 0.1:
        return [draw.randbytes(draw.randrange(300))]
    head = "\r\n".join([f"HTTP/1.1 {status}", *filter(None, headers)]).encode() + b"\r\n\r\n"
    if draw.random() < 0.06:
        return Endless(head + body, draw.choice((0.0, 0.01)), draw.choice((b"x", bytes(5000))))
    return [head, body]


class Endless:
    """Never stops sending."""

    def __init__(self, first: bytes, pause_s: float, piece: bytes) -> None:
        self.first, self.pause_s, self.piece = first, pause_s, piece

    def __iter__(self) -> Iterator[bytes]:
        yield self.first
        while True:
            time.sleep(self.pause_s)
            yield self.piece


def serve(listening: socket.socket, answers: list[Iterable[bytes]]) -> None:
    """Answers request after request, the last one for ever."""
    number = 0
    with suppress(OSError):
        while True:
            connection, _ = listening.accept()
            with connection, suppress(OSError):
                connection.recv(10_000)
                for piece in answers[min(number, len(answers) - 1)]:
                    connection.sendall(piece)
            number += 1


def fetch_and_compare(folder: str, answers: list[Iterable[bytes]], known: bool, half: int) -> str:
    """ "fetched" or "refused"; with a known hash only the right content is fetched."""
    listening = socket.create_server(("127.0.0.1", 0))
    threading.Thread(target=serve, args=(listening, answers), daemon=True).start()
    path = Path(folder, "x")
    try:
        if half:
            path.with_name("x.part").write_bytes(CONTENT[:half])
        size, sha256 = (len(CONTENT), hashlib.sha256(CONTENT).hexdigest()) if known else (None, None)
        try:
            download(
                [f"http://127.0.0.1:{listening.getsockname()[1]}/x"],
                path,
                size=size,
                sha256=sha256,
                max_bytes=20_000,
                tries=3,
                timeout_s=0.3,
                pause_s=0.0,
            )
        except UserError as error:
            str(error).encode()
            return "refused"
        if known and path.read_bytes() != CONTENT:
            return "PROBLEM other content than the hash says"
        return "fetched" if path.stat().st_size <= 20_000 else "PROBLEM more than max_bytes"
    except Exception:
        return f"PROBLEM {traceback.format_exc()}"
    finally:
        listening.close()


def check_servers(folder: Path, count: int, draw: random.Random, pool: list[Any]) -> tuple[Counter[str], list[str]]:
    outcomes, problems = Counter[str](), list[str]()
    for number in range(count):
        into = folder / str(number)
        into.mkdir()
        answers = [random_answer(draw) for _ in range(draw.randrange(1, 4))]
        known, half = draw.random() < 0.7, draw.choice((0, 0, 100, 5000))
        outcome = in_time(fetch_and_compare, str(into), answers, known, half, pool=pool)
        outcomes[outcome.split()[0]] += 1
        if outcome.startswith("PROBLEM"):
            problems.append(f"server {number}: {outcome}")
    return outcomes, problems


# --- readings -------------------------------------------------------------------------------------------------


def readings_hash(cases: Path) -> str:
    """SHA-256 of what every image and every folder of masks below a folder is read as."""
    digest = hashlib.sha256()

    def note(what: str, reading: str) -> None:
        digest.update(f"{what}: {reading}\n".encode())

    for path in sorted(path for path in cases.rglob("*") if path.is_file()):
        what = path.relative_to(cases).as_posix()
        if path.suffix.lower() not in (".png", ".jpg"):
            continue
        try:
            with decoding_rules():
                decoded = decode_image(path)
            note(what, f"{tuple(decoded.pixels.shape)} {hashlib.sha256(decoded.pixels.numpy().tobytes()).hexdigest()}")
        except UserError as error:
            note(what, type(error).__name__)
    for photos in sorted(cases.rglob("photos")):
        what = photos.parent.relative_to(cases).as_posix()
        try:
            source = ImageFolder(photos, masks=photos.parent / "masks")
            masks = [source.mask(index) for index in range(len(source))]
            note(what, f"{source.part_names} " + " ".join(_sha(mask) for mask in masks if mask is not None))
        except UserError as error:
            note(what, type(error).__name__)
    return digest.hexdigest()


def _sha(mask: torch.Tensor) -> str:
    return hashlib.sha256(mask.numpy().tobytes()).hexdigest()


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        raise SystemExit(main())
