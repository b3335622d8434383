"""The user's part masks: one label image per image, or one binary image per part of each image."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import read_text
from partcraft_lit.data.image_files import existing_folder

#: Names of the labels 1, 2, ... of label images, one a line.
NAMES_FILE = "parts.txt"
_MOST_PARTS = 254


class MaskFiles:
    """Masks of images, found by their paths.

    For the image ``a/b.jpg`` the mask is either ``a/b.png``, in which the value of a pixel is the number of its part
    (0 for background; a palette changes nothing), or the folder ``a/b/`` with an image per part, such as
    ``head.png``; see `binary_mask`. Where parts overlap, the later name counts. A part without a file is not in the
    image.

    Args:
        folder: of the masks.
        paths: of the images, inside their own folder.
        sizes: (height, width) of the images.

    Attributes:
        part_names: the lines of ``parts.txt``, or "part1", ... for label images; the names of the files, sorted, for
            images per part.

    Raises:
        UserError: if an image has no mask, two images share one, a mask cannot be read, is ambiguous, has another size
            than its image, or holds a number that no part has; or if the folder mixes both kinds.
    """

    def __init__(self, folder: str | Path, paths: Sequence[str], sizes: Sequence[tuple[int, int]]) -> None:
        self.folder = existing_folder(folder, "dataset.masks", "the masks")
        self._sizes = list(sizes)
        stems = [_stem(path) for path in paths]
        _check_shared(paths, stems)
        label_images, part_images = self._find()
        self._per_part = self._kind(paths, stems, label_images, part_images)
        if self._per_part:
            self._parts = [part_images[stem] for stem in stems]
            self.part_names = sorted({name for files in self._parts for name in files})
        else:
            self._labels = [label_images[stem] for stem in stems]
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
            labels = self._label_image(index)
            if int(labels.max()) > len(self.part_names):
                raise UserError(
                    f"The mask {self._labels[index]} has the value {int(labels.max())}, but "
                    f"{self.folder / NAMES_FILE} names {len(self.part_names)} parts."
                )
            return torch.from_numpy(labels.astype(np.uint8))
        labels = np.zeros(self._sizes[index], dtype=np.uint8)
        for number, name in enumerate(self.part_names, start=1):
            path = self._parts[index].get(name)
            if path is not None:
                shown = binary_mask(path)
                self._check_size(path, shown, index)
                labels[shown] = number
        return torch.from_numpy(labels)

    def _find(self) -> tuple[dict[str, Path], dict[str, dict[str, Path]]]:
        """Stem -> PNG file, and folder -> stem -> PNG file; names in NFC, since macOS and Linux spell accents apart."""
        files: dict[str, Path] = {}
        folders: dict[str, dict[str, Path]] = {}
        seen: set[tuple[int, int]] = set()
        for root, below, names in os.walk(self.folder, followlinks=True):
            stat = Path(root).stat()
            if (stat.st_dev, stat.st_ino) in seen:  # a link that leads back
                below.clear()
                continue
            seen.add((stat.st_dev, stat.st_ino))
            inside = _nfc(Path(root).relative_to(self.folder).as_posix())
            folders[inside] = {}
            for name in names:
                path = Path(root, name)
                if path.suffix.lower() != ".png" or name.startswith(".") or not path.is_file():
                    continue
                stem = _nfc(path.stem)
                if stem in folders[inside]:
                    raise UserError(f"dataset.masks: {folders[inside][stem]} and {path} are the same mask. Remove one.")
                folders[inside][stem] = path
                files[stem if inside == "." else f"{inside}/{stem}"] = path
        return files, folders

    def _kind(
        self,
        paths: Sequence[str],
        stems: Sequence[str],
        label_images: Mapping[str, Path],
        part_images: Mapping[str, Mapping[str, Path]],
    ) -> bool:
        """Whether there is a folder of images per part."""
        known = {*label_images, *part_images}
        missing = [path for path, stem in zip(paths, stems, strict=True) if stem not in known]
        if missing:
            place = self.folder / _stem(missing[0])
            raise UserError(
                f"dataset.masks: {len(missing)} of {len(paths)} images have no mask, for instance {missing[0]}. "
                f"Wanted: {place}.png, or an image per part in {place}."
            )
        labels, parts = (all(stem in found for stem in stems) for found in (label_images, part_images))
        if labels == parts:
            raise UserError(
                f"dataset.masks: {self.folder} has label images for some images and a folder of images for others. "
                "Use one of the two."
            )
        return parts

    def _label_names(self) -> list[str]:
        listed = self.folder / NAMES_FILE
        if listed.is_file():
            return [_nfc(line.strip()) for line in read_text(listed).splitlines() if line.strip()]
        most = max(int(self._label_image(index).max()) for index in range(len(self._labels)))
        return [f"part{number}" for number in range(1, most + 1)]

    def _label_image(self, index: int) -> np.ndarray:
        """(height, width) values as they are stored; of a palette, the indices."""
        path = self._labels[index]
        image = _open(path)
        values = np.array(image)
        if values.ndim != 2:
            raise UserError(f"The mask {path} is a colour image ({image.mode}); one channel is wanted.")
        self._check_size(path, values, index)
        return values

    def _check_size(self, path: Path, values: np.ndarray, index: int) -> None:
        if values.shape != self._sizes[index]:
            height, width = self._sizes[index]
            raise UserError(
                f"The mask {path} is {values.shape[1]} x {values.shape[0]} pixels, its image {width} x {height}: make "
                "the mask as large as the image."
            )


def binary_mask(path: Path) -> np.ndarray:
    """Where a part is, from a file of any common form: (height, width) bool.

    - black and white, grey, palette or colour on black: at least half of the range, as seen (palettes are looked up);
    - two values of which one is 0: the other (0 and 1, 0 and 38, ...);
    - one colour on transparency: the opaque pixels.

    Raises:
        UserError: if the file cannot be read, or its values have no single meaning, naming them.
    """
    image = _open(path)
    if image.mode == "1" and not image.has_transparency_data:
        return np.array(image)
    if image.mode.startswith("I") or image.mode == "F":
        return _part_of(path, np.array(image), 65535)
    rgba = np.array(image.convert("LA" if image.mode == "La" else image.mode).convert("RGBA"))
    colours, alpha = rgba[..., :3], rgba[..., 3]
    if not (alpha == 255).all():
        visible = colours[alpha > 0] if alpha.any() else colours.reshape(-1, 3)
        if (visible.max(axis=0) - visible.min(axis=0)).max() > 8:
            raise UserError(
                f"The mask {path} has both colours (values {_listed(visible)}) and transparency (alpha "
                f"{_listed(alpha)}): it could mean either. Save it in black and white, without transparency."
            )
        return _part_of(path, alpha, 255)
    values = colours.max(axis=-1)
    light = colours[values >= 128].astype(np.float64)
    hues = light / light.max(axis=-1, keepdims=True) if len(light) else light
    if len(hues) and (hues.max(axis=0) - hues.min(axis=0)).max() > 0.25:
        raise UserError(
            f"The mask {path} has several colours (values {_listed(colours)}): it is not clear which of them is the "
            "part. Save it in black and white."
        )
    return _part_of(path, values, 255)


def _part_of(path: Path, values: np.ndarray, white: int) -> np.ndarray:
    """Values -> bool; see `binary_mask`.

    Args:
        path: of the file, for messages.
        values: (height, width).
        white: the largest value that the format can hold.
    """
    levels, half = np.unique(values), (white + 1) / 2
    if len(levels) == 1 and levels[0] in (0, white):
        return values > 0
    if len(levels) == 2 and levels[0] == 0:
        return values > 0
    if len(levels) > 1 and levels[0] < half <= levels[-1]:
        return values >= half
    raise UserError(
        f"The mask {path} has the values {_listed(values)} of 0 to {white}: which of them are the part? "
        "Save it with 0 where the part is not, and 255 where it is."
    )


def _listed(values: np.ndarray) -> str:
    levels = np.unique(values)
    if len(levels) <= 4:
        return ", ".join(str(level) for level in levels)
    return f"{levels[0]} to {levels[-1]}"


def _open(path: Path) -> Image.Image:
    """A decoded mask."""
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except Exception as error:  # broken files make the readers raise nearly anything
        raise UserError(f"The mask {path} cannot be read: {error}.") from error


def _check_shared(paths: Sequence[str], stems: Sequence[str]) -> None:
    """Raises a UserError if two images would have the same mask."""
    first: dict[str, str] = {}
    for path, stem in zip(paths, stems, strict=True):
        if stem in first:
            raise UserError(
                f"dataset.masks: {first[stem]} and {path} would share the mask {stem}.png. Rename one of the images, "
                "and give each a mask of its own."
            )
        first[stem] = path


def _stem(path: str) -> str:
    return _nfc(str(PurePosixPath(path).with_suffix("")))


def _nfc(name: str) -> str:
    return unicodedata.normalize("NFC", name)
