"""Part masks from files, and the presets of the folder source."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from discovery import dataset_parts
from partcraft_lit.config import compose as config
from partcraft_lit.config import factories
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT, GroundTruthSource
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.parts.color import ColorFeatures

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
def label_images(images: Path) -> Path:
    folder = images.parent / "masks"
    save(folder / "sub" / "a.png", LABELS)
    save(folder / "b.png", LABELS[:, ::-1])
    return folder


def test_label_images(images: Path, label_images: Path) -> None:
    source = ImageFolder(images, masks=label_images)
    assert isinstance(source, GroundTruthSource) and source.part_names == ["part1", "part2"]
    assert [source.name(index) for index in range(2)] == ["b.png", "sub/a.png"]
    assert torch.equal(source.mask(1), torch.from_numpy(LABELS))
    (label_images / "parts.txt").write_text("head\ntail\n\n")
    named = ImageFolder(images, masks=label_images)
    assert named.truth(0).part_names == ("head", "tail") and named.truth(0).species == (0, 0)


def test_a_palette_changes_nothing(images: Path, label_images: Path) -> None:
    image = Image.fromarray(LABELS).convert("P")
    image.putpalette([250, 0, 0, 0, 250, 0, 0, 0, 250])
    image.save(label_images / "sub" / "a.png")
    assert torch.equal(ImageFolder(images, masks=label_images).mask(1), torch.from_numpy(LABELS))


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_an_image_per_part(images: Path, mode: str) -> None:
    masks = images / "masks"  # inside the images' folder: its files are no images
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
    assert not isinstance(source, GroundTruthSource) and source.mask(0) is None
    with pytest.raises(UserError, match="has no masks"):
        source.truth(0)


def test_masks_replace_discovery(images: Path, label_images: Path) -> None:
    source = ImageFolder(images, masks=label_images)
    found = dataset_parts(source, ColorFeatures(grid=4), source="masks", K=1)
    assert found.dictionary.names == ("background", "part1", "part2")
    assert torch.equal(found.label_maps[1], torch.from_numpy(LABELS))
    assert found.codes.tolist() == [[0, 0, 0]] * 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("size", r"mask .*b\.png is 16 x 16 pixels, its image 32 x 16: make the mask as large as the image"),
        ("gone", r"1 of 2 images have no mask, for instance b\.png\. Wanted: .*b\.png, or an image per part in"),
        ("colour", r"mask .*b\.png is a colour image \(RGB\)"),
        ("value", r"mask .*b\.png has the value 2, but .*parts\.txt names 1 parts"),
        ("broken", r"mask .*b\.png cannot be read"),
        ("mixed", "has label images for some images and a folder of images for others"),
        ("empty", "has masks of 0 parts"),
    ],
)
def test_mistakes_in_masks(images: Path, label_images: Path, damage: str, message: str) -> None:
    path = label_images / "b.png"
    if damage == "size":
        save(path, LABELS[:, :16])
    elif damage == "gone":
        path.unlink()
    elif damage == "colour":
        save(path, LABELS, "RGB")
    elif damage == "value":
        (label_images / "parts.txt").write_text("head")
    elif damage == "broken":
        path.write_bytes(path.read_bytes()[:40])
    elif damage == "mixed":
        path.unlink()
        save(label_images / "b" / "head.png", LABELS)
    else:
        for name in ("b.png", "sub/a.png"):
            save(label_images / name, LABELS * 0)
    with pytest.raises(UserError, match=message):
        ImageFolder(images, masks=label_images)


PART = np.zeros((48, 64), dtype=bool)
PART[12:22, 6:31] = True  # 250 pixels


def _palette(values: np.ndarray, *colours: int) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8)).convert("P")
    image.putpalette(list(colours))
    return image


def _with_alpha(mode: str, values: np.ndarray, alpha: np.ndarray) -> Image.Image:
    image = Image.fromarray(values.astype(np.uint8)).convert(mode)
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


WHITE, OPAQUE = np.full(PART.shape, 255), np.full(PART.shape, 255)
FORMS = {
    "grey": Image.fromarray(PART.astype(np.uint8) * 255),
    "soft": Image.fromarray(np.where(PART, 200, 20).astype(np.uint8)),
    "bilevel": Image.fromarray(PART.astype(np.uint8) * 255).convert("1"),
    "palette_black_white": _palette(PART, 0, 0, 0, 255, 255, 255),
    "palette_white_first": _palette(~PART, 255, 255, 255, 0, 0, 0),
    "palette_dark_red": _palette(PART, 0, 0, 0, 100, 0, 0),
    "grey_alpha": _with_alpha("L", PART * 255, OPAQUE),
    "cutout_grey_alpha": _with_alpha("L", WHITE, PART * 255),
    "cutout_rgba": _with_alpha("RGB", WHITE, PART * 255),
    "cutout_black": _with_alpha("RGB", WHITE * 0, PART * 255),
    "sixteen_bit": Image.fromarray(np.where(PART, 65535, 0).astype(np.uint16)),
    "sixteen_bit_dark_ground": Image.fromarray(np.where(PART, 65535, 300).astype(np.uint16)),
    "zero_one": Image.fromarray(PART.astype(np.uint8)),
    "zero_one_sixteen_bit": Image.fromarray(PART.astype(np.uint16)),
    "red_on_black": Image.fromarray((PART[..., None] * [255, 0, 0]).astype(np.uint8)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_mask_has_the_same_pixels(tmp_path: Path, form: str) -> None:
    save(tmp_path / "photos" / "a.png", np.zeros((48, 64, 3), dtype=np.uint8))
    (tmp_path / "masks" / "a").mkdir(parents=True)
    FORMS[form].save(tmp_path / "masks" / "a" / "head.png")
    mask = ImageFolder(tmp_path / "photos", masks=tmp_path / "masks").mask(0)
    assert torch.equal(mask == 1, torch.from_numpy(PART)) and int(mask.sum()) == 250


@pytest.mark.parametrize(
    ("image", "values"),
    [
        (Image.fromarray(PART.astype(np.uint8) + 1), "1, 2 of 0 to 255"),
        (Image.fromarray((PART * 2 + (np.arange(64) > 40)).astype(np.uint8)), "0, 1, 2 of 0 to 255"),
        (Image.fromarray(np.full((48, 64), 1, dtype=np.uint8)), "1 of 0 to 255"),
        (Image.fromarray(np.where(PART, 600, 300).astype(np.uint16)), "300, 600 of 0 to 65535"),
        (Image.fromarray((PART[..., None] * [255, 0, 0] + ~PART[..., None] * [0, 255, 0]).astype(np.uint8)), "0, 255"),
        (_with_alpha("L", PART * 255, np.where(np.arange(64) > 20, 255, 0) + PART * 0), "both colours .* and transp"),
        (_with_alpha("L", PART * 255, OPAQUE * 0), "both colours .* and transparency"),
    ],
)
def test_an_ambiguous_mask_is_an_error_that_names_file_and_values(
    tmp_path: Path, image: Image.Image, values: str
) -> None:
    save(tmp_path / "photos" / "a.png", np.zeros((48, 64, 3), dtype=np.uint8))
    (tmp_path / "masks" / "a").mkdir(parents=True)
    image.save(tmp_path / "masks" / "a" / "head.png")
    with pytest.raises(UserError, match=rf"mask .*head\.png has .*{values}"):
        ImageFolder(tmp_path / "photos", masks=tmp_path / "masks")


def test_two_images_do_not_share_a_mask(images: Path, label_images: Path) -> None:
    Image.new("RGB", (32, 16)).save(images / "b.jpg")
    with pytest.raises(UserError, match=r"b\.jpg and b\.png would share the mask b\.png"):
        ImageFolder(images, masks=label_images)


def test_names_of_parts_as_windows_saves_them(images: Path, label_images: Path) -> None:
    (label_images / "parts.txt").write_bytes("\ufeffhead\r\nschwänzchen\r\n".encode())
    assert ImageFolder(images, masks=label_images).part_names == ["head", "schwänzchen"]
    (label_images / "parts.txt").write_text(unicodedata.normalize("NFD", "head\nschwänzchen"), encoding="utf-8")
    assert ImageFolder(images, masks=label_images).part_names == ["head", "schwänzchen"]
    (label_images / "parts.txt").write_bytes("head\r\nschwänzchen\r\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"parts\.txt cannot be read as UTF-8 text: byte 10 is 0xe4\. Save it as UTF-8"):
        ImageFolder(images, masks=label_images)


def test_accents_are_spelled_in_two_ways(tmp_path: Path) -> None:
    """An archive from a Mac has NFD names, everyone else NFC."""
    name = "oiseau_\u00e9tabli"
    save(tmp_path / "photos" / f"{name}.png", np.zeros((48, 64, 3), dtype=np.uint8))
    (tmp_path / "masks").mkdir()
    Image.fromarray(PART.astype(np.uint8)).save(tmp_path / "masks" / f"{unicodedata.normalize('NFD', name)}.png")
    assert int(ImageFolder(tmp_path / "photos", masks=tmp_path / "masks").mask(0).sum()) == 250


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
