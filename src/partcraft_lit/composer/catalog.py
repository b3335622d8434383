"""Parts, their variants, and the images of a run, as people browse them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

from numpy.typing import NDArray
from PIL import Image

from partcraft_lit.composer.composition import PartChoice
from partcraft_lit.composer.reader import codes_by_name
from partcraft_lit.composer.stored_parts import StoredParts, matching
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.visualization import hex_color, part_colors


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image of the run without reading it.

    Attributes:
        index: in the run's images, from 0.
        name: path inside the data set.
        class_name: None without classes.
        codes: name -> code of the parts that it shows, the background among them.
    """

    index: int
    name: str
    class_name: str | None
    codes: dict[str, int]


class Images(Sequence[ImageInfo]):
    """Some of a run's images, or all: a sequence that reads no image file.

    Args:
        stored: of the run.
        indices: of the images in it.
    """

    def __init__(self, stored: StoredParts, indices: NDArray[Any]) -> None:
        self._stored = stored
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> ImageInfo: ...
    @overload
    def __getitem__(self, place: slice) -> Images: ...
    def __getitem__(self, place: int | slice) -> ImageInfo | Images:
        if isinstance(place, slice):
            return Images(self._stored, self.indices[place])
        index = int(self.indices[place])
        stored = self._stored
        codes = codes_by_name(stored.codes[index].tolist(), stored.part_names)
        return ImageInfo(index, stored.names[index], stored.class_name(index), codes)

    def __iter__(self) -> Iterator[ImageInfo]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return f"Images({len(self)} of {len(self._stored.names)})"


class Variant:
    """One code of a part.

    Attributes:
        part: name of the part.
        code: its number.
        count: images that show it; None if the run does not say.
        trained: whether its token was trained; one that no image of the training set shows was not.
        class_name: the class that it stands for, where codes are classes.
    """

    def __init__(self, stored: StoredParts, part: int, code: int, trained: bool) -> None:
        self._stored, self._part = stored, part
        self.part = stored.part_names[part]
        self.code = code
        self.count = None if stored.counts is None else stored.counts[part][code]
        self.trained = trained
        names = stored.dictionary.class_names
        self.class_name = names[code] if names is not None and part > 0 else None

    @property
    def token(self) -> str:
        """As it stands in a prompt."""
        return PartChoice(self.part, self.code).token

    def choice(self, weight: float = 1.0) -> PartChoice:
        """To be composed."""
        return PartChoice(self.part, self.code, weight)

    @property
    def images(self) -> Images:
        """Those that show it.

        Raises:
            UserError: if the run says nothing of its images.
        """
        return Images(self._stored, matching(self._stored, None, self._part, [self.code], None))

    @property
    def thumbnail(self) -> Image.Image | None:
        """The part in the most typical image, the rest faded; None if neither atlas nor images are there."""
        return self._stored.code_thumbnail(self._part, self.code)

    def __repr__(self) -> str:
        return f"Variant({self.token}, {self.count} images{'' if self.trained else ', untrained'})"


class Part:
    """One part of the run.

    Attributes:
        index: 0 is the background.
        name: as prompts name it.
        num_codes: number of its variants.
        color: ``#rrggbb``, the same in atlas, masks and overlays.
        variants: one per code.
    """

    def __init__(self, stored: StoredParts, index: int, trained: Sequence[bool]) -> None:
        self.index = index
        self.name = stored.part_names[index]
        self.num_codes = stored.dictionary.num_codes(index)
        self.color = hex_color(part_colors(len(stored.part_names))[index])
        self.variants = tuple(Variant(stored, index, code, trained[code]) for code in range(self.num_codes))

    @property
    def counts(self) -> tuple[int | None, ...]:
        """Images that show each code."""
        return tuple(variant.count for variant in self.variants)

    def __getitem__(self, code: int) -> Variant:
        """The variant with this code.

        Raises:
            UserError: if there is none.
        """
        if not 0 <= code < self.num_codes:
            raise UserError(f"Part {self.name!r} has no code {code}; its codes are 0 to {self.num_codes - 1}.")
        return self.variants[code]

    def __repr__(self) -> str:
        return f"Part({self.index} {self.name}, {self.num_codes} codes)"


def select_images(
    stored: StoredParts, class_name: str | None, part: int | None, codes: Sequence[int] | None, text: str | None
) -> Images:
    """See ``Run.images``.

    Raises:
        UserError: for a class that the images do not have, or a code without its part.
    """
    if codes is not None and part is None:
        raise UserError(f"code={list(codes)} needs the part whose code it is: images(part='head', code=3).")
    if class_name is not None and class_name not in stored.class_names:
        raise UserError(f"class_name={class_name!r}: no such class. {did_you_mean(class_name, stored.class_names)}")
    return Images(stored, matching(stored, class_name, part, codes, text))
