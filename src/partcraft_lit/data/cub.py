"""CUB-200-2011 in its published layout: 200 bird species with bounding boxes and 15 keypoints."""

from __future__ import annotations

import functools
from pathlib import Path

import torch

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import Annotation
from partcraft_lit.data.image_files import ImageFiles
from partcraft_lit.data.published import (
    Split,
    check_held_out,
    check_listed,
    check_split,
    choose_classes,
    find_root,
    read_table,
)

_FILES = (
    "images.txt",
    "classes.txt",
    "image_class_labels.txt",
    "train_test_split.txt",
    "bounding_boxes.txt",
    "parts/parts.txt",
    "parts/part_locs.txt",
    "images",
)


class Cub(ImageFiles):
    """An image source with classes, boxes and keypoints.

    Args:
        dir: the folder ``CUB_200_2011``, or the one that holds it.
        split: which images: "train" (5,994), "test" (5,794) or "all".
        classes: names of the species to use ("Blue Jay"); all if empty. Labels count these.
        class_noun: what the images show.
        store: see `ImageFiles`.

    Raises:
        UserError: if the folder is not the data set, is incomplete or inconsistent.
    """

    def __init__(
        self,
        dir: str | Path,
        split: Split = "train",
        classes: tuple[str, ...] = (),
        class_noun: str = "bird",
        store: Store | str | Path | None = None,
    ) -> None:
        check_split(split)
        self._split = split
        self._test = functools.partial(Cub, dir, "test", classes, class_noun, store)
        root = find_root(dir, ("CUB_200_2011",), _FILES, "cub")
        images = {key: f"images/{path}" for key, path in read_table(root / "images.txt", 2)}
        species = {key: name.partition(".")[2] for key, name in read_table(root / "classes.txt", 2)}
        names = [name.replace("_", " ") for name in species.values()]
        position = {key: index for index, key in enumerate(species)}
        labels = {key: position[name] for key, name in _rows(root, "image_class_labels.txt", 2, images)}
        in_train = {key: flag == "1" for key, flag in _rows(root, "train_test_split.txt", 2, images)}
        chosen = choose_classes(classes, names)
        number_of = {label: number for number, label in enumerate(chosen)}
        keys = [key for key in images if labels[key] in number_of and split in ("all", _split_name(in_train[key]))]
        if not keys:
            raise UserError(f"dataset.split={split} has no images of {', '.join(classes) or 'any class'} in {root}.")
        check_listed(root, [images[key] for key in keys], "images.txt")
        super().__init__(
            root,
            [images[key] for key in keys],
            labels=[number_of[labels[key]] for key in keys],
            class_names=[names[index] for index in chosen],
            class_noun=class_noun,
            store=store,
        )
        self._key_of = {path: key for key, path in images.items()}
        self._boxes = {
            key: [float(v) for v in row.split()] for key, row in _rows(root, "bounding_boxes.txt", 2, images)
        }
        self._read_keypoints(root, images)

    def held_out(self, count: int) -> Cub:
        """The images of the test split, of the same classes.

        Raises:
            UserError: if the data set is not the training split.
        """
        check_held_out(self._split, count)
        return self._test()

    def annotation(self, index: int) -> Annotation:
        """Bounding box and keypoints of an image, in pixels."""
        key = self._key_of[self._paths[index]]
        left, top, width, height = self._boxes[key]
        return Annotation(
            size=self.size(index),
            boxes=torch.tensor([[left, top, left + width, top + height]]),
            keypoints=self._places[self._row_of[key], :, :2],
            visible=self._places[self._row_of[key], :, 2] > 0,
        )

    def _read_keypoints(self, root: Path, images: dict[str, str]) -> None:
        parts = dict(read_table(root / "parts/parts.txt", 2))
        self.keypoint_names = list(parts.values())
        self._row_of = {key: row for row, key in enumerate(images)}
        column = {key: number for number, key in enumerate(parts)}
        rows = [row for row in read_table(root / "parts/part_locs.txt", 5) if row[0] in self._row_of]
        wanted = torch.tensor([[self._row_of[row[0]], column.get(row[1], -1)] for row in rows], dtype=torch.long)
        if len(rows) != len(images) * len(parts) or bool((wanted < 0).any()):
            raise UserError(
                f"{root / 'parts/part_locs.txt'} has {len(rows)} places instead of {len(parts)} for each of "
                f"{len(images)} images. Unpack the archive again."
            )
        self._places = torch.zeros(len(images), len(parts), 3)  # x, y, visible
        self._places[wanted[:, 0], wanted[:, 1]] = torch.tensor([[float(value) for value in row[2:]] for row in rows])


def _split_name(in_train: bool) -> Split:
    return "train" if in_train else "test"


def _rows(root: Path, name: str, columns: int, images: dict[str, str]) -> list[list[str]]:
    """Rows of a table with one per image.

    Raises:
        UserError: if images are missing in it.
    """
    rows = list(read_table(root / name, columns))
    missing = images.keys() - {row[0] for row in rows}
    if missing:
        example = images[min(missing)]
        raise UserError(
            f"{root / name} lacks {len(missing)} images of images.txt, for instance {example}. Unpack the "
            "archive again."
        )
    return [row for row in rows if row[0] in images]
