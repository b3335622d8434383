"""Images of one bird and one beast together, for methods that learn several concepts from an image or a few."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.types import GroundTruth
from partcraft_lit.world.truth import right_colors
from partcraft_lit.world.zoo.draw import Drawing, draw
from partcraft_lit.world.zoo.looks import BIRD, FAMILIES, SpeciesSplit, most_species, species_table
from partcraft_lit.world.zoo.pairs import PairMember, creature_masks, draw_pair
from partcraft_lit.world.zoo.scenes import pose_of
from partcraft_lit.world.zoo.shapes import PLANS

_VERSION = 1


class CreaturesPair:
    """The same two creatures in every image, of species that the base model has never seen, in changing poses.

    An image source whose "parts" are the two creatures, named by their nouns: its ground truth is a mask of each.

    Args:
        bird: species of the bird, 0...29, or as many as the split has.
        beast: species of the beast, likewise.
        images: how many images.
        image_size: side in pixels.
        seed: decides the looks of the species, and the poses.
        species_split: species of which part of the held-out world: "all" (30), "dev" (10), on which settings are
            chosen, or "test" (20), on which methods are compared.

    Raises:
        UserError: for a number out of range.
    """

    def __init__(
        self,
        bird: int = 0,
        beast: int = 0,
        images: int = 1,
        image_size: int = 64,
        seed: int = 0,
        species_split: SpeciesSplit = "all",
    ) -> None:
        count = most_species(species_split)
        for name, value, least, most in (
            ("bird", bird, 0, count - 1),
            ("beast", beast, 0, count - 1),
            ("images", images, 1, 10**6),
            ("image_size", image_size, 16, 4096),
        ):
            if not least <= value <= most:
                raise UserError(f"dataset.{name} must be between {least} and {most}, got {value}.")
        self._species = (bird, beast)
        self._keys = (*(() if species_split == "all" else (species_split,)), bird, beast)
        self._images, self._size, self._seed = images, image_size, seed
        #: Nouns of the concepts, from left to right.
        self.part_names: Sequence[str] = tuple(FAMILIES)
        self.class_noun = ""
        self.class_names: Sequence[str] = ()
        table = torch.from_numpy(species_table(count, seed, split=species_split))
        #: (parts, 3) look of each creature.
        self.looks = [table[species] for species in self._species]

    def __len__(self) -> int:
        return self._images

    def image(self, index: int) -> Tensor:
        """(3, size, size) uint8."""
        return self._drawn(index).images[0]

    def name(self, index: int) -> str:
        return f"bird_{self._species[0]:02d}_beast_{self._species[1]:02d}/{self._checked(index):03d}"

    def content_hash(self, index: int) -> str:
        return f"{derive_seed(self._seed, 'pair', _VERSION, self._size, *self._keys, self._checked(index)):016x}"

    def label(self, index: int) -> None:
        return None

    def truth(self, index: int) -> GroundTruth:
        """Mask and species of each creature."""
        mask = creature_masks(self._drawn(index).label_maps)[0]
        return GroundTruth(mask, self._species, tuple(self.part_names))

    def alone(self, index: int, creature: int) -> Tensor:
        """(3, size, size) uint8: one of the creatures by itself, filling an image: what it looks like."""
        family = self.part_names[creature]
        return draw(PLANS[family], self.looks[creature][None], self._pose(index, family), self._size).images[0]

    def another(self, number: int, creature: int | None = None) -> Tensor:
        """(3, size, size) uint8: the pair, or one of the two by itself, in a pose of its own: in no image it is so.

        Args:
            number: of the pose, any.
            creature: which one; None for both.
        """
        poses = [pose_of(self._seed, "another", *self._keys, number, family)[None] for family in self.part_names]
        if creature is None:
            return self._paired(poses).images[0]
        plan = PLANS[self.part_names[creature]]
        return draw(plan, self.looks[creature][None], poses[creature], self._size).images[0]

    def color_judge(self, creature: int) -> Callable[[Sequence[Tensor]], Tensor] | None:
        """Judges the colours of one creature in images of it alone; the oracle reads birds only."""
        if self.part_names[creature] != BIRD.noun:
            return None
        return functools.partial(right_colors, looks=self.looks[creature])

    def _drawn(self, index: int) -> Drawing:
        return self._paired([self._pose(index, family) for family in self.part_names])

    def _paired(self, poses: Sequence[Tensor]) -> Drawing:
        bird, beast = (
            PairMember(family, looks[None], pose)
            for family, looks, pose in zip(self.part_names, self.looks, poses, strict=True)
        )
        return draw_pair(bird, beast, self._size)

    def _pose(self, index: int, family: str) -> Tensor:
        return pose_of(self._seed, "pair", *self._keys, self._checked(index), family)[None]

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"There are {len(self)} images, so no number {index}.")
        return index
