"""Part masks from files, and the presets of the folder source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from partcraft_lit.config import compose as config
from partcraft_lit.config import factories
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT, TruthfulSource
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.parts.given import given_parts
from partcraft_lit.parts.raw import ColorFeatures

LABELS = np.array([[0, 1, 1, 0], [2, 2, 0, 0]], dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # 16 x 32


def save(path: Path, values: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    image.convert(mode).save(path) if mode else image.save(path)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Two images, the first in a folder; part 1 is red, part 2 green."""
    colours = np.array([[0, 0, 90], [250, 0, 0], [0, 250, 0]], dtype=np.uint8)
    save(tmp_path / "images" / "sub" / "a.png", colours[LABELS])
    save(tmp_path / "images" / "b.png", colours[LABELS[:, ::-1]])
    return tmp_path / "images"


@pytest.fixture
def label_pictures(images: Path) -> Path:
    folder = images.parent / "masks"
    save(folder / "sub" / "a.png", LABELS)
    save(folder / "b.png", LABELS[:, ::-1])
    return folder


def test_label_pictures(images: Path, label_pictures: Path) -> None:
    source = ImageFolder(images, masks=label_pictures)
    assert isinstance(source, TruthfulSource) and source.part_names == ["part1", "part2"]
    assert [source.name(index) for index in range(2)] == ["b.png", "sub/a.png"]
    assert torch.equal(source.mask(1), torch.from_numpy(LABELS))
    (label_pictures / "parts.txt").write_text("head\ntail\n\n")
    named = ImageFolder(images, masks=label_pictures)
    assert named.truth(0).part_names == ("head", "tail") and named.truth(0).species == (0, 0)


def test_a_palette_changes_nothing(images: Path, label_pictures: Path) -> None:
    picture = Image.fromarray(LABELS).convert("P")
    picture.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250])
    picture.save(label_pictures / "sub" / "a.png")
    assert torch.equal(ImageFolder(images, masks=label_pictures).mask(1), torch.from_numpy(LABELS))


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_a_picture_per_part(images: Path, mode: str) -> None:
    masks = images / "masks"  # inside the images' folder: its pictures are no images
    for stem, labels in (("sub/a", LABELS), ("b", LABELS[:, ::-1])):
        for number, name in ((1, "head"), (2, "tail")):
            save(masks / stem / f"{name}.png", ((labels == number) * 255).astype(np.uint8), mode)
    (masks / "b" / "tail.png").unlink()
    source = ImageFolder(images, masks=masks)
    assert len(source) == 2 and source.part_names == ["head", "tail"]
    assert torch.equal(source.mask(1), torch.from_numpy(LABELS))
    assert source.truth(0).species == (0, ABSENT) and set(source.mask(0).unique().tolist()) == {0, 1}


def test_without_masks_nothing_is_known_of_the_truth(images: Path) -> None:
    source = ImageFolder(images)
    assert not isinstance(source, TruthfulSource) and source.mask(0) is None
    with pytest.raises(UserError, match="has no masks"):
        source.truth(0)


def test_masks_replace_discovery(images: Path, label_pictures: Path) -> None:
    source = ImageFolder(images, masks=label_pictures)
    found = given_parts(source, ColorFeatures(grid=4), given="masks", num_codes=1)
    assert found.dictionary.names == ("background", "part1", "part2")
    assert torch.equal(found.label_maps[1], torch.from_numpy(LABELS))
    assert found.codes.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("size", r"mask .*b\.png is 16 x 16 pixels, its image 32 x 16: make the mask as large as the image"),
        ("gone", r"1 of 2 images have no mask, for instance b\.png\. Wanted: .*b\.png, or a picture per part in"),
        ("colour", r"mask .*b\.png is a colour picture \(RGB\)"),
        ("value", r"mask .*b\.png has the value 2, but .*parts\.txt names 1 parts"),
        ("broken", r"mask .*b\.png cannot be read"),
        ("mixed", "has label pictures for some images and a folder of pictures for others"),
        ("empty", "has masks of 0 parts"),
    ],
)
def test_mistakes_in_masks(images: Path, label_pictures: Path, damage: str, message: str) -> None:
    path = label_pictures / "b.png"
    if damage == "size":
        save(path, LABELS[:, :16])
    elif damage == "gone":
        path.unlink()
    elif damage == "colour":
        save(path, LABELS, "RGB")
    elif damage == "value":
        (label_pictures / "parts.txt").write_text("head")
    elif damage == "broken":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "mixed":
        path.unlink()
        save(label_pictures / "b" / "head.png", LABELS)
    else:
        for name in ("b.png", "sub/a.png"):
            save(label_pictures / name, LABELS * 0)
    with pytest.raises(UserError, match=message):
        ImageFolder(images, masks=label_pictures)


def test_a_missing_folder_of_masks(images: Path) -> None:
    with pytest.raises(UserError, match=r"dataset\.masks: there is no folder"):
        ImageFolder(images, masks=images / "nowhere")


def test_the_first_of_each_class(tmp_path: Path) -> None:
    for kind in ("fem", "masc"):
        for index in range(4):
            save(tmp_path / "sims4_faces" / kind / f"{index}.png", np.full((9, 9, 3), index, dtype=np.uint8))
    given = [f"dataset.dir={tmp_path / 'sims4_faces'}", "dataset.per_class=3", f"paths.store={tmp_path / 'store'}"]
    values = config.plain(config.compose("train", ["dataset=sims4_faces", *given]))
    source = factories.make_source(values)
    names = [source.name(index) for index in range(len(source))]
    assert names == [f"{kind}/{index}.png" for kind in ("fem", "masc") for index in range(3)]
    assert source.class_names == ["fem", "masc"] and source.class_noun == "face"
    assert len(ImageFolder(tmp_path / "sims4_faces", labels="none", per_class=5)) == 5
