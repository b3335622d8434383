"""Parts and their variants, as people browse them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from PIL import Image

from partcraft_lit.composer.composition import PartChoice
from partcraft_lit.composer.stored_parts import Images
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.visualization import hex_color, part_colors


class KnownParts(Protocol):
    """What variants are listed from."""

    @property
    def part_names(self) -> Sequence[str]:
        """M + 1 names, the background first."""
        ...

    @property
    def counts(self) -> Sequence[Sequence[int]] | None:
        """Images that show each code of each part; None where that is unknown."""
        ...

    @property
    def code_names(self) -> Sequence[str] | None:
        """Classes that codes of foreground parts stand for, where they do."""
        ...

    def images_of(self, part: int, code: int) -> Images:
        """Images that show a code."""
        ...

    def code_thumbnail(self, part: int, code: int) -> Image.Image | None:
        """An image of a code, if there is one."""
        ...


class Variant:
    """One code of a part.

    Attributes:
        part: name of the part.
        code: its number.
        count: images that show it; None if the run does not say.
        trained: whether its token was trained; one that no image of the training set shows was not.
        class_name: the class that it stands for, where codes are classes.
    """

    def __init__(self, known: KnownParts, part: int, code: int, trained: bool) -> None:
        self._known, self._part = known, part
        self.part = known.part_names[part]
        self.code = code
        self.count = None if known.counts is None else known.counts[part][code]
        self.trained = trained
        names = known.code_names
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
        return self._known.images_of(self._part, self.code)

    @property
    def thumbnail(self) -> Image.Image | None:
        """The part in the most typical image, the rest faded; None if neither atlas nor images are there.

        Of an export: an image that was drawn of it.
        """
        return self._known.code_thumbnail(self._part, self.code)

    def __repr__(self) -> str:
        return f"Variant({self.token}, {self.count} images{'' if self.trained else ', untrained'})"


class Part:
    """One part of the run.

    Attributes:
        index: 0 is the background.
        name: as prompts name it.
        num_codes: its codes are below this number.
        color: ``#rrggbb``, the same in atlas, masks and overlays.
        variants: one per code that is there, ascending; an export may have some of them, and a part that corrections
            took away has none.
    """

    def __init__(self, known: KnownParts, index: int, trained: Mapping[int, bool]) -> None:
        self.index = index
        self.name = known.part_names[index]
        self.color = hex_color(part_colors(len(known.part_names))[index])
        self.variants = tuple(Variant(known, index, code, trained[code]) for code in sorted(trained))
        self.num_codes = max(trained, default=-1) + 1

    @property
    def counts(self) -> tuple[int | None, ...]:
        """Images that show each code."""
        return tuple(variant.count for variant in self.variants)

    def __getitem__(self, code: int) -> Variant:
        """The variant with this code.

        Raises:
            UserError: if there is none.
        """
        found = next((variant for variant in self.variants if variant.code == code), None)
        if found is None:
            codes = ", ".join(str(variant.code) for variant in self.variants[:20]) or "none"
            more = ", ..." if len(self.variants) > 20 else ""
            raise UserError(f"Part {self.name!r} has no code {code}; its codes here are {codes}{more}.")
        return found

    def __repr__(self) -> str:
        return f"Part({self.index} {self.name}, {self.num_codes} codes)"
