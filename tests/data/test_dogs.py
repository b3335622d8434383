"""Stanford Dogs in its published layout."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from discovery import discover
from miniatures import BREEDS, write_dogs, write_mat_list
from partcraft_lit.config import compose as config
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT, AnnotatedSource, PartToken
from partcraft_lit.data.dogs import Dogs
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.tokens.grammar import PartVocabulary, parse


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dogs(tmp_path_factory.mktemp("dogs") / "stanford_dogs")


@pytest.fixture
def broken(published: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(published, tmp_path / "dogs"))


@pytest.mark.parametrize("lists", [".", "lists"])
def test_splits_are_those_of_the_lists(broken: Path, lists: str) -> None:
    for path in list(broken.glob("*.mat")):
        (broken / lists).mkdir(exist_ok=True)
        path.rename(broken / lists / path.name)
    train, test, both = (Dogs(broken, split) for split in ("train", "test", "all"))
    names = [{source.name(index) for index in range(len(source))} for source in (train, test, both)]
    assert len(train) == len(test) == 6 and len(both) == 12
    assert not names[0] & names[1] and names[0] | names[1] == names[2]


def test_labels_begin_with_zero_and_name_the_folder(published: Path) -> None:
    """The published lists count from 1; a code that clamps them to 1... never reaches the first breed."""
    source = Dogs(published.parent, "all")
    assert source.class_names == ["Chihuahua", "Japanese spaniel", "Maltese dog"]
    labels = [source.label(index) for index in range(len(source))]
    assert min(labels) == 0 and max(labels) == len(BREEDS) - 1
    for index, label in enumerate(labels):
        assert source.name(index).startswith(f"Images/{BREEDS[label]}/")


def test_labels_that_are_shifted_are_an_error(tmp_path: Path, broken: Path) -> None:
    with pytest.raises(UserError, match="do not run from 1 to 3"):
        Dogs(write_dogs(tmp_path / "shifted", per_breed=2, size=32, first_label=2))
    source = Dogs(broken, "train")
    files = [source.name(index).removeprefix("Images/") for index in range(len(source))]
    write_mat_list(broken / "train_list.mat", files, [int(source.label(index)) for index in range(len(source))])
    with pytest.raises(
        UserError, match=r"gives n02085620-Chihuahua/.*the label 0, which is not a breed: labels are shifted"
    ):
        Dogs(broken, "train")


def test_a_code_per_class_and_no_more(published: Path) -> None:
    """With class codes, ids run 0...classes - 1: neither is the first unreachable nor is there one behind the last.

    The background is part 0 of every data set, found by rule: no number to look up by eye for each.
    """
    source = Dogs(published)
    found = discover(source, ColorFeatures(grid=8), M=2, K=2, codes="class", foreground_clusters=2, nredo=1, niter=5)
    names, codes = found.dictionary.names, found.dictionary.codes_per_part
    assert names[0] == "background" and codes[1:] == (3, 3)
    assert set(found.codes[:, 1:].unique().tolist()) <= {ABSENT, 0, 1, 2}
    for index in range(len(source)):
        shown = found.codes[index, 1:][found.codes[index, 1:] != ABSENT]
        assert set(shown.tolist()) <= {source.label(index)}
    vocabulary = PartVocabulary(names, codes)
    assert [piece for piece in parse("<part1:0><part2:2>", vocabulary) if piece] == [PartToken(1, 0), PartToken(2, 2)]
    with pytest.raises(UserError, match="3"):
        parse("<part1:3>", vocabulary)


def test_boxes_are_those_of_the_xml(published: Path) -> None:
    source = Dogs(published, "test", classes=("maltese-dog",))
    assert len(source) == 2 and source.class_names == ["Maltese dog"] and source.label(0) == 0
    assert isinstance(source, AnnotatedSource) and source.keypoint_names == []
    annotation = source.annotation(0)
    xml = (published / "Annotation" / source.name(0).removeprefix("Images/")).with_suffix("").read_text()
    for value, side in zip(annotation.boxes[0].tolist(), ("xmin", "ymin", "xmax", "ymax"), strict=True):
        assert f"<{side}>{value:.0f}</{side}>" in xml
    assert annotation.size == (48, 48)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train_list.mat", r"neither .* nor its folder lists holds train_list\.mat"),
        ("file_list.mat", r"holds file_list\.mat"),
        ("Annotation", "is incomplete: Annotation is missing"),
        ("Images", r"holds no Images, but Annotation, file_list\.mat.*partcraft fetch dataset=dogs"),
        (f"Images/{BREEDS[0]}", r"2 of 6 images that train_list\.mat names are missing"),
    ],
)
def test_what_is_missing_is_named(broken: Path, name: str, message: str) -> None:
    path = broken / name
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(UserError, match=message):
        Dogs(broken)


def test_a_broken_annotation(broken: Path) -> None:
    source = Dogs(broken)
    path = (broken / "Annotation" / source.name(0).removeprefix("Images/")).with_suffix("")
    path.write_text(path.read_text()[:200])
    with pytest.raises(UserError, match=f"The annotation .*{path.name} cannot be read"):
        source.annotation(0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is damaged or no MATLAB file"),
        (b"<html>" + bytes(500), "is damaged or no MATLAB file"),
        (b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + bytes(100), "is a MATLAB 7.3 file, which is not read"),
        (150, "is damaged or no MATLAB file"),
        (-20, "is damaged or no MATLAB file"),
        (128, "lacks one of the variables file_list, labels"),
    ],
)
def test_a_damaged_list(broken: Path, content: bytes | int, message: str) -> None:
    path = broken / "train_list.mat"
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:content])
    with pytest.raises(UserError, match=message):
        Dogs(broken)


def test_the_preset() -> None:
    parts = config.plain(config.compose("train", ["dataset=dogs"]))["parts"]
    assert (parts["M"], parts["K"], len(parts["names"])) == (7, 256, 7)


def test_held_out_images_are_those_of_the_test_split(published: Path) -> None:
    test, held_out = Dogs(published, "test"), Dogs(published).held_out(2)
    assert [held_out.name(i) for i in range(len(held_out))] == [test.name(i) for i in range(len(test))]
    with pytest.raises(UserError, match=r"eval\.held_out=2: .*dataset\.split=all"):
        Dogs(published, "all").held_out(2)
