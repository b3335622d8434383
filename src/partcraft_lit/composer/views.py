"""An image with its parts: overlays, crops, and the part under a pixel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from partcraft_lit.composer.composition import PartChoice
from partcraft_lit.composer.reader import codes_by_name
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import kept_window, resize
from partcraft_lit.core.types import ABSENT, BACKGROUND
from partcraft_lit.core.visualization import (
    fit_square,
    highlight_part,
    overlay_parts,
    part_colors,
    resize_labels,
    to_pil,
    upscale,
)
from partcraft_lit.parts.exemplars import part_box

#: Longer side of overlays and crops in pixels, unless asked for otherwise.
_SIDE = 768
_CROP_SIDE = 160


@dataclass(frozen=True, eq=False)
class ImageView:
    """One image, with the parts that were read off it.

    Attributes:
        tensor: (3, height, width) uint8.
        label_map: (grid height, grid width) uint8, part 0...M of each cell; 0 is the background. The grid covers the
            whole image, or its middle where it is longer than 3:1.
        part_codes: (M + 1,) code of each part, -1 where it is absent.
        cosines: per part, see ``PartChoice.cosine``; None where absent or unknown.
        part_features: (M + 1, D) mean feature of each part, zeros where absent; None where unknown.
        part_names: M + 1, the background first.
        index: in the run's images; None for a new image.
        name: readable name, or "".
        class_name: of a run's image, where it has classes.
    """

    tensor: Tensor
    label_map: NDArray[np.uint8]
    part_codes: Tensor
    cosines: Sequence[float | None]
    part_features: Tensor | None
    part_names: Sequence[str]
    index: int | None = None
    name: str = ""
    class_name: str | None = None

    @cached_property
    def pixels(self) -> Image.Image:
        """The image, upright, in RGB."""
        return to_pil(self.tensor)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels, as Pillow counts."""
        return int(self.tensor.shape[2]), int(self.tensor.shape[1])

    @property
    def codes(self) -> dict[str, int]:
        """Name -> code of the parts that are in the image, the background among them."""
        return codes_by_name(self.part_codes, self.part_names)

    @property
    def choices(self) -> tuple[PartChoice, ...]:
        """All parts of the image but the background, to be composed."""
        return tuple(self.choice(part) for part in range(1, len(self.part_names)) if self.part_codes[part] != ABSENT)

    def choice(self, part: int | str) -> PartChoice:
        """The variant of a part that this image shows.

        Raises:
            UserError: if it does not show the part.
        """
        index = self.part_names.index(part) if isinstance(part, str) and part in self.part_names else part
        if not isinstance(index, int) or not 0 <= index < len(self.part_names) or self.part_codes[index] == ABSENT:
            raise UserError(f"This image shows no {part!r}; it shows {', '.join(self.codes)}.")
        code, cosine = int(self.part_codes[index]), self.cosines[index]
        return PartChoice(self.part_names[index], code, image=self.index, image_name=self.name, cosine=cosine)

    def part_feature(self, part: int | str) -> Tensor:
        """(D,) mean feature of a part.

        Raises:
            UserError: if the image does not show the part, or its features were not computed.
        """
        if self.part_features is None:
            raise UserError("The parts of this data set are given, so no features of them are stored.")
        return self.part_features[self._index(part)].float()

    def part_at(self, x: float, y: float) -> PartChoice | None:
        """The part under a pixel: what the overlay shows there.

        Args:
            x, y: column and row, 0 at the left and top edge; whole numbers name pixels.

        Returns:
            None on the background, outside the image, and on the ends of an image longer than 3:1, which are not read.
        """
        part = self._label_at(x, y)
        return None if part == BACKGROUND else self.choice(part)

    def labels(self, size: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """The parts at another resolution, smooth as in the overlay.

        Args:
            size: (width, height); None for that of the image.

        Returns:
            (height, width) uint8, 0...M.
        """
        width, height = size or self.size
        result = np.zeros((height, width), dtype=np.uint8)
        top, left, high, wide = kept_window(*self.tensor.shape[1:])
        down, across = height / self.tensor.shape[1], width / self.tensor.shape[2]
        rows = slice(round(top * down), max(round((top + high) * down), round(top * down) + 1))
        columns = slice(round(left * across), max(round((left + wide) * across), round(left * across) + 1))
        shape = result[rows, columns].shape
        label_map = torch.from_numpy(self.label_map)
        result[rows, columns] = resize_labels(label_map, shape, len(self.part_names), smooth=True).numpy()
        return result

    def overlay(self, part: int | str | None = None, *, side: int = _SIDE, opacity: float = 0.6) -> Image.Image:
        """The image with its parts in their colours.

        Args:
            part: highlights this one alone and fades the rest; None for all.
            side: the image is drawn with a longer side of at most so many pixels.
            opacity: of the colours, 0...1.
        """
        image, labels = self._drawn(side)
        if part is None:
            return to_pil(overlay_parts(image, labels, self._colors, opacity=opacity))
        return to_pil(highlight_part(image, labels, self._index(part), self._colors))

    def crop(self, part: int | str, side: int = _CROP_SIDE) -> Image.Image:
        """A square of ``side`` pixels around a part, the rest faded.

        Raises:
            UserError: if the image does not show the part.
        """
        index = self._index(part)
        top, left, high, wide = kept_window(*self.tensor.shape[1:])
        image = self.tensor[:, top : top + high, left : left + wide]
        label_map = torch.from_numpy(self.label_map)
        if index == BACKGROUND:
            image, labels = self._drawn(2 * side)
            return to_pil(fit_square(highlight_part(image, labels, index, self._colors), side))
        first, start, last, end = part_box(label_map, index, high, wide)
        # Labels of the window alone: those of a whole photograph would take a hundred megabytes.
        shown = _at_side(image[:, first:last, start:end], 2 * side)
        rows, columns = np.linspace(first, last, shown.shape[1] + 1), np.linspace(start, end, shown.shape[2] + 1)
        labels = self._labels_at((columns[:-1] + columns[1:]) / 2 / wide, (rows[:-1] + rows[1:]) / 2 / high)
        return to_pil(fit_square(highlight_part(shown, labels, index, self._colors), side))

    def thumbnail(self, side: int = _CROP_SIDE) -> Image.Image:
        """The image with a longer side of at most ``side`` pixels."""
        return to_pil(_shrunk(self.tensor, side))

    @cached_property
    def _colors(self) -> Tensor:
        return part_colors(len(self.part_names))

    def _index(self, part: int | str) -> int:
        return self.part_names.index(self.choice(part).part)

    def _drawn(self, side: int) -> tuple[Tensor, Tensor]:
        """Image and labels at drawing size."""
        image = _at_side(self.tensor, side)
        return image, torch.from_numpy(self.labels((image.shape[2], image.shape[1])))

    def _label_at(self, x: float, y: float) -> int:
        top, left, high, wide = kept_window(*self.tensor.shape[1:])
        # A whole number is a pixel, and its centre is half a pixel further.
        across, down = (np.floor(x) + 0.5 - left) / wide, (np.floor(y) + 0.5 - top) / high
        if not (0 <= across < 1 and 0 <= down < 1):
            return BACKGROUND
        return int(self._labels_at(np.array([across]), np.array([down]))[0, 0])

    def _labels_at(self, across: NDArray[np.floating], down: NDArray[np.floating]) -> Tensor:
        """Labels at shares 0...1 of the kept window's width and height: ``resize_labels(smooth=True)`` at points."""
        labels = torch.from_numpy(self.label_map).long()
        members = torch.nn.functional.one_hot(labels, len(self.part_names)).float()  # (gh, gw, labels)
        upper, lower, fall = _between(down, labels.shape[0])
        first, second, lean = _between(across, labels.shape[1])
        columns = torch.lerp(members[:, first], members[:, second], lean[None, :, None])
        mixed = torch.lerp(columns[upper], columns[lower], fall[:, None, None])
        return (mixed * 2**12).round().argmax(dim=-1)


def _between(shares: NDArray[np.floating], cells: int) -> tuple[Tensor, Tensor, Tensor]:
    """The cells on both sides of each point, and how far it is from the first, as bilinear interpolation has it."""
    places = torch.from_numpy(np.asarray(shares, dtype=np.float64) * cells - 0.5).clamp(0, cells - 1)
    first = places.floor().long()
    return first, (first + 1).clamp_max(cells - 1), (places - first).float()


def _at_side(image: Tensor, side: int) -> Tensor:
    """With a longer side of ``side`` pixels; small images are enlarged too, so that outlines stay thin."""
    return upscale(image, side) if max(image.shape[1:]) < side else _shrunk(image, side)


def _shrunk(image: Tensor, side: int) -> Tensor:
    height, width = image.shape[1:]
    if max(height, width) <= side:
        return image
    scale = side / max(height, width)
    return resize(image, (max(round(height * scale), 1), max(round(width * scale), 1)))
