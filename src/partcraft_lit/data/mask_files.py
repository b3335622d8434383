"""Part masks that a person has: one label picture per image, or one black-and-white picture per part of each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.data.image_files import existing_folder

#: Names of the labels 1, 2, ... of label pictures, one a line.
NAMES_FILE = "parts.txt"
_MOST_PARTS = 254


class MaskFiles:
    """Masks of images, found by their paths.

    For the image ``a/b.jpg`` the mask is either ``a/b.png``, in which the value of a pixel is the number of its part
    (0 for background; a palette changes nothing), or the folder ``a/b/`` with a picture per part, such as
    ``head.png``, white (at least 128) where the part is. Where parts overlap, the later name counts. A part without a
    picture is not in the image.

    Args:
        folder: where the masks are.
        paths: of the images, inside their own folder.
        sizes: (height, width) of the images.

    Attributes:
        part_names: the lines of ``parts.txt``, or "part1", ... for label pictures; the names of the files, sorted, for
            pictures per part.

    Raises:
        UserError: if an image has no mask, a mask cannot be read, has another size than its image, or holds a number
            that no part has; or if the folder mixes both kinds.
    """

    def __init__(self, folder: str | Path, paths: Sequence[str], sizes: Sequence[tuple[int, int]]) -> None:
        self.folder = existing_folder(folder, "dataset.masks", "the masks")
        self._places = [self.folder / Path(path).with_suffix("") for path in paths]
        self._sizes = list(sizes)
        self._per_part = self._kind(paths)
        if self._per_part:
            self.part_names = sorted({file.stem for place in self._places for file in place.glob("*.png")})
        else:
            self.part_names = self._label_names()
        if not self.part_names or len(self.part_names) > _MOST_PARTS:
            raise UserError(
                f"dataset.masks: {self.folder} has masks of {len(self.part_names)} parts; 1 to {_MOST_PARTS} can be."
            )
        for index in range(len(paths)):
            self.read(index)

    def read(self, index: int) -> Tensor:
        """(height, width) uint8, 0 background, 1... for ``part_names``.

        Raises:
            UserError: see the class.
        """
        if not self._per_part:
            labels = self._picture(_label_picture(self._places[index]), index)
            if int(labels.max()) > len(self.part_names):
                raise UserError(
                    f"The mask {_label_picture(self._places[index])} has the value {int(labels.max())}, but "
                    f"{self.folder / NAMES_FILE} names {len(self.part_names)} parts."
                )
            return torch.from_numpy(labels.astype(np.uint8))
        labels = np.zeros(self._sizes[index], dtype=np.uint8)
        for number, name in enumerate(self.part_names, start=1):
            path = self._places[index] / f"{name}.png"
            if path.is_file():
                labels[self._picture(path, index) >= 128] = number
        return torch.from_numpy(labels)

    def _kind(self, paths: Sequence[str]) -> bool:
        """Whether there is a folder of pictures per image."""
        missing = [
            path
            for path, place in zip(paths, self._places, strict=True)
            if not (_label_picture(place).is_file() or place.is_dir())
        ]
        if missing:
            place = self.folder / Path(missing[0]).with_suffix("")
            raise UserError(
                f"dataset.masks: {len(missing)} of {len(paths)} images have no mask, for instance {missing[0]}. "
                f"Wanted: {_label_picture(place)}, or a picture per part in {place}."
            )
        kinds = {place.is_dir() for place in self._places}
        if len(kinds) > 1:
            raise UserError(
                f"dataset.masks: {self.folder} has label pictures for some images and a folder of pictures for others. "
                "Use one of the two."
            )
        return kinds.pop()

    def _label_names(self) -> list[str]:
        listed = self.folder / NAMES_FILE
        if listed.is_file():
            return [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
        most = max(int(self._picture(_label_picture(place), index).max()) for index, place in enumerate(self._places))
        return [f"part{number}" for number in range(1, most + 1)]

    def _picture(self, path: Path, index: int) -> np.ndarray:
        """(height, width) values as they are stored."""
        try:
            with Image.open(path) as image:
                mode = image.mode
                values = np.array(image.convert("L") if mode == "1" and self._per_part else image)
        except (OSError, SyntaxError, ValueError) as error:
            raise UserError(f"The mask {path} cannot be read: {error}.") from error
        if values.ndim == 3 and self._per_part:
            values = values[..., :3].max(axis=-1)
        if values.ndim != 2:
            raise UserError(f"The mask {path} is a colour picture ({mode}); one channel is wanted.")
        if values.shape != self._sizes[index]:
            height, width = self._sizes[index]
            raise UserError(
                f"The mask {path} is {values.shape[1]} x {values.shape[0]} pixels, its image {width} x {height}: make "
                "the mask as large as the image."
            )
        return values


def _label_picture(place: Path) -> Path:
    return place.with_name(place.name + ".png")
