"""Published data sets in their true layout, with a few small images in them.

The images are drawn birds and beasts, so that boxes and keypoints can be true ones.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.io import savemat
from torch import Tensor

from partcraft_lit.core.visualization import to_pil
from partcraft_lit.world.creatures import Creatures

#: CUB's 15 parts in its order, each with the part of a drawn bird that it lies on.
CUB_PARTS = {
    "back": "body",
    "beak": "head",
    "belly": "body",
    "breast": "body",
    "crown": "head",
    "forehead": "head",
    "left eye": "head",
    "left leg": "legs",
    "left wing": "wing",
    "nape": "head",
    "right eye": "head",
    "right leg": "legs",
    "right wing": "wing",
    "tail": "tail",
    "throat": "head",
}
CUB_SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Blue_Jay")


def matrix_profile(name: str, red: _XYZ, green: _XYZ, blue: _XYZ, curve: tuple[float, ...]) -> bytes:
    """An ICC profile of version 4 with three primaries (XYZ under D50) and one parametric curve."""

    def numbers(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    def text(value: str) -> bytes:
        coded = value.encode("utf-16-be")
        return b"mluc" + struct.pack(">IIIHHII", 0, 1, 12, 0x656E, 0x5553, len(coded), 28) + coded

    kind = {1: 0, 5: 3}[len(curve)]
    tone = b"para" + struct.pack(">IHH", 0, kind, 0) + numbers(*curve)
    tags = {b"desc": text(name), b"cprt": text("none"), b"wtpt": b"XYZ \0\0\0\0" + numbers(0.9642, 1.0, 0.8249)}
    for letter, primary in zip(b"rgb", (red, green, blue), strict=True):
        tags[bytes([letter]) + b"XYZ"] = b"XYZ \0\0\0\0" + numbers(*primary)
        tags[bytes([letter]) + b"TRC"] = tone
    table, data = b"", b""
    for tag, content in tags.items():
        table += tag + struct.pack(">II", 132 + 12 * len(tags) + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    head = bytes(4) + struct.pack(">I", 0x04200000) + b"mntrRGB XYZ "
    body = head + struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + numbers(0.9642, 1.0, 0.8249)
    whole = bytes(4) + body + bytes(124 - len(body)) + struct.pack(">I", len(tags)) + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


_XYZ = tuple[float, float, float]
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
_ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = matrix_profile("Display P3", *_P3, _SRGB_CURVE)
P3_GAMMA_22 = matrix_profile("P3, gamma 2.2", *_P3, (2.19921875,))
ADOBE_RGB = matrix_profile("Adobe RGB (1998)", *_ADOBE, (2.19921875,))


def write_cub(folder: Path, per_species: int = 4, size: int = 48) -> Path:
    """``CUB_200_2011`` below ``folder``, with three species; every second image is for training."""
    root = folder / "CUB_200_2011"
    (root / "parts").mkdir(parents=True)
    zoo = Creatures(species=len(CUB_SPECIES), images_per_species=per_species, image_size=size, seed=3)
    tables: dict[str, list[str]] = {
        "images.txt": [],
        "image_class_labels.txt": [],
        "train_test_split.txt": [],
        "bounding_boxes.txt": [],
        "parts/part_locs.txt": [],
        "classes.txt": [f"{number} {name}" for number, name in enumerate(CUB_SPECIES, start=1)],
        "parts/parts.txt": [f"{number} {name}" for number, name in enumerate(CUB_PARTS, start=1)],
    }
    for index in range(len(zoo)):
        key, species = index + 1, zoo.label(index)
        path = Path(CUB_SPECIES[species]) / f"{CUB_SPECIES[species][4:]}_{index:04d}_{796000 + index}.jpg"
        (root / "images" / path).parent.mkdir(parents=True, exist_ok=True)
        to_pil(zoo.image(index)).save(root / "images" / path, quality=95)
        label_map = zoo.truth(index).label_map
        left, top, right, bottom = box_of(label_map > 0)
        tables["images.txt"].append(f"{key} {path.as_posix()}")
        tables["image_class_labels.txt"].append(f"{key} {species + 1}")
        tables["train_test_split.txt"].append(f"{key} {index % 2}")
        tables["bounding_boxes.txt"].append(f"{key} {left}.0 {top}.0 {right - left}.0 {bottom - top}.0")
        for number, part in enumerate(CUB_PARTS.values(), start=1):
            x, y, visible = _place(label_map == list(zoo.part_names).index(part) + 1)
            tables["parts/part_locs.txt"].append(f"{key} {number} {x:.1f} {y:.1f} {visible}")
    for name, lines in tables.items():
        (root / name).write_text("\n".join(lines) + "\n")
    return root


def box_of(mask: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of the true pixels, the last two exclusive."""
    rows, columns = mask.any(dim=1).nonzero()[:, 0], mask.any(dim=0).nonzero()[:, 0]
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _place(mask: Tensor) -> tuple[float, float, int]:
    """The pixel of a mask that is nearest to its centre; zeros where it is empty, as in CUB."""
    places = mask.nonzero().double()
    if not len(places):
        return 0.0, 0.0, 0
    nearest = torch.cdist(places, places.mean(dim=0, keepdim=True)).argmin()
    row, column = places[nearest].tolist()
    return column + 0.5, row + 0.5, 1


BREEDS = ("n02085620-Chihuahua", "n02085782-Japanese_spaniel", "n02085936-Maltese_dog")
_XML = """<annotation>
\t<folder>{folder}</folder>
\t<filename>{name}</filename>
\t<size><width>{size}</width><height>{size}</height><depth>3</depth></size>
\t<segment>0</segment>
\t<object>
\t\t<name>{breed}</name>
\t\t<pose>Unspecified</pose>
\t\t<bndbox>
\t\t\t<xmin>{box[0]}</xmin>
\t\t\t<ymin>{box[1]}</ymin>
\t\t\t<xmax>{box[2]}</xmax>
\t\t\t<ymax>{box[3]}</ymax>
\t\t</bndbox>
\t</object>
</annotation>"""


def write_dogs(root: Path, per_breed: int = 4, size: int = 48, first_label: int = 1) -> Path:
    """Stanford Dogs with three breeds; the first half of each is for training. Published labels begin with 1."""
    zoo = Creatures(species=len(BREEDS), images_per_species=per_breed, image_size=size, seed=4, family="beast")
    files: dict[str, list[tuple[str, int]]] = {"train": [], "test": [], "file": []}
    for index in range(len(zoo)):
        breed = BREEDS[zoo.label(index)]
        name = f"{breed.partition('-')[0]}_{index * 7 + 1}"
        for folder in ("Images", "Annotation"):
            (root / folder / breed).mkdir(parents=True, exist_ok=True)
        to_pil(zoo.image(index)).save(root / "Images" / breed / f"{name}.jpg", quality=95)
        xml = _XML.format(
            folder=breed[1:].partition("-")[0],
            name=name,
            size=size,
            breed=breed.partition("-")[2],
            box=box_of(zoo.truth(index).label_map > 0),
        )
        (root / "Annotation" / breed / name).write_text(xml)
        entry = (f"{breed}/{name}.jpg", zoo.label(index) + first_label)
        files["file"].append(entry)
        files["train" if index % per_breed < per_breed // 2 else "test"].append(entry)
    for split, entries in files.items():
        write_mat_list(root / f"{split}_list.mat", [file for file, _ in entries], [label for _, label in entries])
    return root


def write_mat_list(path: Path, files: Sequence[str], labels: Sequence[int]) -> None:
    """``file_list`` (cells of text), ``annotation_list`` and ``labels`` (doubles), as MATLAB 7 saves them."""
    lists = {"file_list": list(files), "annotation_list": [file[:-4] for file in files]}
    cells = {name: np.array(texts, dtype=object)[:, None] for name, texts in lists.items()}
    savemat(path, {**cells, "labels": np.array(labels, dtype=np.float64)[:, None]}, do_compression=True)
