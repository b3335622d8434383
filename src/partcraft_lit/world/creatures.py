"""A data set of creatures, drawn on the fly, with ground truth for each image and every hybrid."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.types import ABSENT, GroundTruth
from partcraft_lit.world.transfers import CreatureTransfers
from partcraft_lit.world.truth import OracleTruth
from partcraft_lit.world.zoo.draw import Drawing, draw
from partcraft_lit.world.zoo.looks import BIRD, SpeciesSplit, family_of, species_table
from partcraft_lit.world.zoo.scenes import pose_of
from partcraft_lit.world.zoo.shapes import PLANS

#: Raise by one when the same settings would draw other pixels.
_VERSION = 2


class Creatures:
    """Species of the held-out world, each with a fixed look for every part, in poses of every kind.

    Image ``i`` shows species ``i // images_per_species``. An image source with labels and ground truth.

    Args:
        species: 1...30, or as many as the split has.
        images_per_species: images of each.
        image_size: side in pixels.
        seed: decides looks and poses.
        family: "bird" or "beast".
        species_split: species of which part of the held-out world: "all" (30), "dev" (10), on which settings are
            chosen, or "test" (20), on which methods are compared.

    Raises:
        UserError: for a number out of range or an unknown family.
    """

    def __init__(
        self,
        species: int = 20,
        images_per_species: int = 30,
        image_size: int = 64,
        seed: int = 0,
        family: str = "bird",
        species_split: SpeciesSplit = "all",
    ) -> None:
        for name, value, least in (("images_per_species", images_per_species, 1), ("image_size", image_size, 16)):
            if value < least:
                raise UserError(f"dataset.{name} must be at least {least}, got {value}.")
        self._family = family_of(family)
        self._plan = PLANS[family]
        #: (species, parts, 3) look of every part of every species.
        self.looks = torch.from_numpy(species_table(species, seed, split=species_split))
        #: Neither poses nor images of one split are those of another.
        self._split = () if species_split == "all" else (species_split,)
        self._images_per_species = images_per_species
        self._first = 0  # number of each species' first image
        self._size = image_size
        self._seed = seed
        self.class_noun = self._family.noun
        self.class_names: Sequence[str] = [f"species_{index:02d}" for index in range(species)]
        self.part_names: Sequence[str] = self._family.part_names
        # neighbours are drawn together, which costs little more than one
        self._block = max(1, 32 * 64**2 // image_size**2)
        self._drawn_block = functools.lru_cache(maxsize=64)(self._draw_block)

    def __len__(self) -> int:
        return len(self.class_names) * self._images_per_species

    def image(self, index: int) -> Tensor:
        """(3, size, size) uint8."""
        drawing, row = self._drawn(index)
        return drawing.images[row]

    def name(self, index: int) -> str:
        species, number = self._key(index)
        return f"{self.class_names[species]}/{number:03d}"

    def content_hash(self, index: int) -> str:
        settings = (_VERSION, *self._split, self.class_noun, len(self.class_names), self._size)
        return f"{derive_seed(self._seed, *settings, *self._key(index)):016x}"

    def label(self, index: int) -> int:
        return self._checked(index) // self._images_per_species

    def truth(self, index: int) -> GroundTruth:
        """Masks and species of the parts; a part with too few visible pixels is absent."""
        drawing, row = self._drawn(index)
        species = tuple(self.label(index) if visible else ABSENT for visible in drawing.visible[row].tolist())
        return GroundTruth(drawing.label_maps[row], species, tuple(self.part_names))

    def held_out(self, count: int) -> Creatures:
        """At least ``count`` images of the same species in other poses, which are not in this data set."""
        other = copy.copy(self)
        other._first = self._first + self._images_per_species
        other._images_per_species = -(-count // len(self.class_names))
        other._drawn_block = functools.lru_cache(maxsize=64)(other._draw_block)
        return other

    def judge(self, match: Mapping[str, int | None]) -> OracleTruth | None:
        """The oracle as a judge of generated images; it reads birds only."""
        return OracleTruth(self, match) if self.class_noun == BIRD.noun else None

    @property
    def transfers(self) -> CreatureTransfers:
        """Draws these species' parts on creatures of the other family."""
        return CreatureTransfers(self.class_noun, self.looks, self.part_names, self._size, self._seed)

    def render(self, species: Tensor, indices: Sequence[int]) -> Drawing:
        """True images of hybrids.

        Args:
            species: (B, parts) species of each part.
            indices: B images whose pose, background and light are used.

        Returns:
            The images that a perfect composer would make, with masks.
        """
        looks = self.looks[species, torch.arange(species.shape[1])]
        pose = torch.stack([pose_of(self._seed, *self._split, *self._key(index)) for index in indices])
        return draw(self._plan, looks, pose, self._size)

    def _drawn(self, index: int) -> tuple[Drawing, int]:
        block, row = divmod(self._checked(index), self._block)
        return self._drawn_block(block), row

    def _draw_block(self, block: int) -> Drawing:
        indices = range(block * self._block, min(len(self), (block + 1) * self._block))
        labels = torch.tensor([self.label(index) for index in indices])
        return self.render(labels[:, None].expand(-1, len(self.part_names)), indices)

    def _key(self, index: int) -> tuple[int, int]:
        """Species and number, so that more species or images leave the ones there were as they are."""
        species, number = divmod(self._checked(index), self._images_per_species)
        return species, self._first + number

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} creatures, so no number {index}.")
        return index
