"""A folder of anything becomes a list of images and a list of what was left out."""

from __future__ import annotations

import csv
import hashlib
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import partcraft_lit.data.image_files as image_files
from miniatures import DISPLAY_P3
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import decode_image
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.data.image_files import Rejected


def picture(path: Path, seed: int = 0, size: tuple[int, int] = (20, 12), age: float = 60.0, **options: object) -> Path:
    """Noise, written as if ``age`` seconds ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    before(path, age)
    return path


def before(path: Path, age: float) -> None:
    time = path.stat().st_mtime - age
    os.utime(path, (time, time))


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded."""
    names: list[str] = []

    def spy(file: object) -> object:
        names.append(Path(file.name).name)  # type: ignore[attr-defined]
        return decode_image(file)  # type: ignore[arg-type]

    monkeypatch.setattr(image_files, "decode_image", spy)
    return names


def test_any_nesting_and_ending_sorted_and_without_what_is_hidden(tmp_path: Path) -> None:
    for name in ("b.PNG", "a/z.JPEG", "a/deep/er/c.webp", "Zed.bmp", "ä ö.gif", "x.y.tiff"):
        picture(tmp_path / name)
    for name in (".hidden.png", ".git/d.png", "a/._z.png", "__MACOSX/a.png", "@eaDir/b.png"):
        picture(tmp_path / name)
    for name in ("notes.txt", "film.mpg", "paper.pdf", "weights.h5"):
        (tmp_path / name).write_bytes(b"something else")
    source = ImageFolder(tmp_path)
    names = [source.name(index) for index in range(len(source))]
    assert names == ["Zed.bmp", "a/deep/er/c.webp", "a/z.JPEG", "b.PNG", "x.y.tiff", "ä ö.gif"]
    assert source.rejected == []
    assert source.image(3).shape == (3, 12, 20)
    assert source.content_hash(3) == hashlib.sha256((tmp_path / "b.PNG").read_bytes()).hexdigest()


def test_bad_files_are_listed_with_reasons_and_stay_where_they_are(tmp_path: Path) -> None:
    good = picture(tmp_path / "good.jpg")
    half = picture(tmp_path / "sub" / "half.jpg", size=(200, 200))
    half.write_bytes(half.read_bytes()[:2000])
    picture(tmp_path / "speck.png", size=(1, 1))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "phone.HEIC").write_bytes(b"\x00\x00\x00\x18ftypheic")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = ImageFolder(tmp_path)
    assert [source.name(index) for index in range(len(source))] == ["good.jpg"]
    reasons = {one.path: one.reason for one in source.rejected}
    assert list(reasons) == ["empty.png", "gone.png", "page.jpg", "phone.HEIC", "speck.png", "sub/half.jpg"]
    assert "truncated" in reasons["sub/half.jpg"]
    assert "1 x 1 pixels" in reasons["speck.png"]
    assert "No such file" in reasons["gone.png"]
    assert ".heic files are not read: convert it" in reasons["phone.HEIC"]
    assert good.exists()
    assert half.exists()
    source.write_rejected(tmp_path / "run" / "rejected.csv")
    with (tmp_path / "run" / "rejected.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["path", "reason"], *([one.path, one.reason] for one in source.rejected)]


def test_without_bad_files_the_table_is_its_header(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    ImageFolder(tmp_path).write_rejected(tmp_path / "rejected.csv")
    assert (tmp_path / "rejected.csv").read_text() == "path,reason\n"


def test_changes_while_reading_are_noted(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    picture(tmp_path / "still.png")
    assert ImageFolder(tmp_path).notes == [("moving.gif", "first of 2 frames")]


@pytest.mark.skipif(os.name != "posix", reason="no pipes and devices among files")
def test_what_is_no_regular_file_is_listed_and_never_opened(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    (tmp_path / "itself.png").symlink_to("itself.png")
    (tmp_path / "endless.png").symlink_to("/dev/zero")
    (tmp_path / "folder").symlink_to("folder")
    os.mkfifo(tmp_path / "pipe.png")
    source = ImageFolder(tmp_path, store=Store(tmp_path / ".store"))
    assert [(one.path, one.reason) for one in source.rejected] == [
        ("endless.png", "it is a device, no regular file"),
        ("folder", "it cannot be opened: Too many levels of symbolic links"),
        ("itself.png", "it cannot be opened: Too many levels of symbolic links"),
        ("pipe.png", "it is a pipe, no regular file"),
    ]
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match=r"holds no images \(endless\.png: it is a device"):
        ImageFolder(tmp_path)
    with pytest.raises(UserError, match=r"none of the 1 images (.|\n)*pipe\.png: it is a pipe"):
        image_files.ImageFiles(tmp_path, ["pipe.png"])


def test_a_class_with_an_accent_is_one_class(tmp_path: Path) -> None:
    for form in ("NFC", "NFD"):
        picture(tmp_path / unicodedata.normalize(form, "m\u00e9sange") / f"{form}.png")
    picture(tmp_path / "wren" / "a.png")
    source = ImageFolder(tmp_path)
    assert source.class_names == ["m\u00e9sange", "wren"]
    assert [source.label(index) for index in range(3)] == [0, 0, 1]


def test_converted_colours_are_noted_once_and_change_the_hash(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What an earlier version stored for a file with a profile is not taken for its pixels; other hashes stay."""
    for name in ("a.png", "b.png"):
        picture(tmp_path / name, icc_profile=DISPLAY_P3)
    picture(tmp_path / "plain.png")
    for _ in range(2):
        with caplog.at_level("INFO"):
            source = ImageFolder(tmp_path, store=Store(tmp_path / ".store"))
        assert caplog.text.count("2 of them: colours converted from the profile 'Display P3' to sRGB") == 1
        caplog.clear()
        bytes_alone = [hashlib.sha256((tmp_path / source.name(index)).read_bytes()).hexdigest() for index in range(3)]
        hashes = [source.content_hash(index) for index in range(3)]
        assert hashes[0] == hashes[1] == stable_hash(bytes_alone[0], "sRGB") and hashes[2] == bytes_alone[2]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "dir" / "loop").symlink_to(tmp_path / "dir")
    source = ImageFolder(tmp_path / "dir")
    assert [source.name(index) for index in range(len(source))] == ["link/a.png"]


@pytest.mark.skipif(os.name != "posix", reason="names are text on this system")
def test_names_that_are_no_text(tmp_path: Path) -> None:
    good = picture(tmp_path / "a.png")
    odd, bad = os.fsencode(tmp_path) + b"/caf\xe9.png", os.fsencode(tmp_path) + b"/x\xff.png"
    try:
        os.rename(good, odd)  # noqa: PTH104 - a path of bytes
        Path(os.fsdecode(bad)).write_bytes(b"")
    except OSError:
        pytest.skip("the file system takes only text")
    store = Store(tmp_path / "store")
    for _ in range(2):
        source = ImageFolder(tmp_path, store=store)
        assert source.name(0) == "caf\\xe9.png"
        assert source.image(0).shape == (3, 12, 20)
        assert [one.path for one in source.rejected] == ["x\\xff.png"]
        source.write_rejected(tmp_path / "rejected.csv")


def test_a_second_start_decodes_only_what_is_new_or_changed(tmp_path: Path, decoded: list[str]) -> None:
    images, store = tmp_path / "images", Store(tmp_path / "store")
    for number in range(4):
        picture(images / f"{number}.png", seed=number)
    (images / "bad.png").write_bytes(b"bad")
    before(images / "bad.png", 60)
    first = ImageFolder(images, store=store)
    assert sorted(decoded) == ["0.png", "1.png", "2.png", "3.png", "bad.png"]
    decoded.clear()
    second = ImageFolder(str(images), store=tmp_path / "store")
    assert decoded == []
    assert second.rejected == first.rejected
    assert [second.content_hash(index) for index in range(4)] == [first.content_hash(index) for index in range(4)]
    (images / "1.png").rename(images / "renamed.png")  # equal bytes: known
    picture(images / "2.png", seed=99)
    picture(images / "new.png", seed=5)
    (images / "bad.png").unlink()
    third = ImageFolder(images, store=store)
    assert sorted(decoded) == ["2.png", "new.png"]
    assert len(third) == 5
    assert third.rejected == []


def test_a_file_that_was_written_just_now_is_not_trusted_by_its_time(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    path = picture(tmp_path / "images" / "a.bmp", seed=1, age=0)
    time = path.stat().st_mtime_ns
    first = ImageFolder(tmp_path / "images", store=store)
    picture(path, seed=2, age=0)  # same size
    os.utime(path, ns=(time, time))  # and, for a coarse clock, same time
    assert ImageFolder(tmp_path / "images", store=store).content_hash(0) != first.content_hash(0)


def test_without_a_store_every_start_checks(tmp_path: Path, decoded: list[str]) -> None:
    picture(tmp_path / "a.png")
    for _ in range(2):
        ImageFolder(tmp_path)
    assert decoded == ["a.png", "a.png"]


def test_an_interruption_keeps_what_was_checked(
    tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, store = tmp_path / "images", Store(tmp_path / "store")
    for number in range(5):
        picture(images / f"{number}.png", seed=number)
    monkeypatch.setattr(image_files, "_SAVE_EVERY", 2)
    check = image_files._check

    def interrupted(path: Path, memory: object) -> object:
        if path.name == "4.png":
            raise KeyboardInterrupt
        return check(path, memory)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(image_files, "_check", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ImageFolder(images, store=store)
    decoded.clear()
    assert len(ImageFolder(images, store=store)) == 5
    assert decoded == ["4.png"]


def test_a_file_that_changes_under_way_is_an_error(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", seed=1)
    source = ImageFolder(tmp_path)
    picture(path, seed=2, size=(30, 30))
    with pytest.raises(UserError, match=r"a\.png was changed while the program was using it"):
        source.image(0)
    path.unlink()
    with pytest.raises(UserError, match=r"a\.png .* become unreadable since the start: No such file"):
        source.image(0)


def test_classes_are_the_first_sub_folders(tmp_path: Path) -> None:
    for name in ("wren/1.png", "wren/more/2.png", "owl/3.png"):
        picture(tmp_path / name)
    picture(tmp_path / "speck.png", size=(1, 1))  # outside, but it is no image
    source = ImageFolder(tmp_path, class_noun="bird")
    assert source.class_names == ["owl", "wren"]
    assert [source.label(index) for index in range(3)] == [0, 1, 1]
    assert source.class_noun == "bird"
    plain = ImageFolder(tmp_path, labels="none")
    assert (plain.class_names, plain.label(0)) == ([], None)


def test_one_sub_folder_or_images_outside_mean_no_classes_unless_asked_for(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "1.png")
    assert ImageFolder(tmp_path).class_names == []
    assert ImageFolder(tmp_path, labels="folder").class_names == ["images"]
    picture(tmp_path / "other" / "1.png")
    picture(tmp_path / "outside.png")
    assert ImageFolder(tmp_path).label(0) is None
    with pytest.raises(UserError, match=r"1 of 3 images lie in .*, for instance outside\.png\. Move them"):
        ImageFolder(tmp_path, labels="folder")


def test_wrong_labels_option(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.labels is 'folders'\. Did you mean 'folder'"):
        ImageFolder(tmp_path, labels="folders")  # type: ignore[arg-type]


def test_a_missing_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "birds" / "train").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"there is no folder .*brids/train\. .* no 'brids' in it\. Did you mean 'birds'"
    ):
        ImageFolder(tmp_path / "brids" / "train")


@pytest.mark.parametrize("given", ["", "  "])
def test_no_folder_given(given: str) -> None:
    with pytest.raises(UserError, match=r"dataset\.dir is not set"):
        ImageFolder(given)


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    with pytest.raises(UserError, match=rf"a\.png is a file\. Give the folder that holds the images: {tmp_path}"):
        ImageFolder(path)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        ImageFolder(tmp_path)
    picture(tmp_path / ".hidden.png")
    with pytest.raises(UserError, match="holds no visible files"):
        ImageFolder(tmp_path)


def test_a_folder_without_images_says_what_is_there(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "c.heic", "sub/README"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    message = r"holds no images, only 4 other files \(2 \.txt, 1 \.heic, 1 without an ending\)\. Convert them to JPEG"
    with pytest.raises(UserError, match=message):
        ImageFolder(tmp_path)


def test_a_folder_of_broken_images_says_why(tmp_path: Path) -> None:
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"none of the 7 images .* can be read:\n  0\.png: (.|\n)*and 2 more"):
        ImageFolder(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is forbidden to this user")
def test_what_may_not_be_read_is_listed(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "closed" / "b.png")
    (tmp_path / "closed").chmod(0)
    try:
        assert ImageFolder(tmp_path).rejected == [Rejected("closed/", "the folder cannot be read: Permission denied")]
    finally:
        (tmp_path / "closed").chmod(0o700)


def test_pixels_are_the_files(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", seed=3)
    expected = np.array(Image.open(tmp_path / "a.png")).transpose(2, 0, 1)
    assert torch.equal(ImageFolder(tmp_path).image(0), torch.from_numpy(expected))
