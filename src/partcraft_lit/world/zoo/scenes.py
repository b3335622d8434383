"""What is in each image of a world, as a function of (seed, index): looks, pose, and a caption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from partcraft_lit.core.randomness import numpy_generator
from partcraft_lit.world.zoo.captions import AND_A, SPECIES_NAMES, PartWords, caption
from partcraft_lit.world.zoo.draw import POSE_SIZE, Drawing, draw
from partcraft_lit.world.zoo.looks import FAMILIES, NUM_PARTS, Family, look_table
from partcraft_lit.world.zoo.pairs import PairMember, draw_pair
from partcraft_lit.world.zoo.shapes import PLANS


@dataclass(frozen=True)
class PretrainingScenes:
    """Endless captioned creatures for the base model; no look of the held-out world is among them.

    Three kinds of creature come in equal shares: one named species whole, parts of several named species, and free
    looks. A named species has a fixed look for every part, so the base model learns that one word can stand for a rich
    look, as "cardinal" or "zebra" do in a large model.

    Args:
        seed: decides everything together with the index.
        size: side in pixels.
        beast_share: share of the four-legged family among creatures that are alone, and on the left of pairs.
        pair_share: share of images with a second creature, of the other family, on the right.
    """

    seed: int = 0
    size: int = 64
    beast_share: float = 0.1
    pair_share: float = 0.08

    def batch(self, indices: range) -> tuple[Drawing, list[str]]:
        """Images and captions of the given indices; labels are those of ``zoo.pairs``."""
        rows = [self._one(index) for index in indices]
        others = [self._other(index) for index in indices]
        images = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8)
        label_maps = torch.empty(len(rows), self.size, self.size, dtype=torch.uint8)
        for family in FAMILIES:
            for paired in (False, True):
                mine = [i for i, row in enumerate(rows) if row.family == family and (others[i] is not None) == paired]
                if mine:
                    left = _member([rows[i] for i in mine])
                    right = [other for i in mine if (other := others[i])]
                    plan = PLANS[family]
                    drawing = (
                        draw_pair(left, _member(right), self.size)
                        if paired
                        else draw(plan, left.looks, left.pose, self.size)
                    )
                    images[mine], label_maps[mine] = drawing.images, drawing.label_maps
        captions = [
            row.caption if other is None else f"{row.caption}{AND_A}{other.caption}"
            for row, other in zip(rows, others, strict=True)
        ]
        return Drawing(images, label_maps), captions

    def looks(self, indices: range) -> Tensor:
        """(B, 2 * parts, 3) shape, colour and texture of every part, in the order of labels.

        Of a creature that is alone the second half repeats the first.
        """
        pairs = [(self._one(index), self._other(index)) for index in indices]
        return torch.from_numpy(np.stack([np.concatenate([one.looks, (other or one).looks]) for one, other in pairs]))

    def families(self, index: int) -> tuple[Family, ...]:
        """Of the creatures that an image shows, from left to right."""
        other = self._other(index)
        names = [self._one(index).family, *([other.family] if other else [])]
        return tuple(FAMILIES[name] for name in names)

    def _one(self, index: int) -> _Scene:
        rng = numpy_generator(self.seed, "pretraining", index)
        family = "beast" if rng.random() < self.beast_share else "bird"
        return _creature(family, rng, in_a_sentence=True)

    def _other(self, index: int) -> _Scene | None:
        """The second creature; drawn from numbers of its own, so that the first is the same with and without it."""
        rng = numpy_generator(self.seed, "pretraining pair", index)
        if rng.random() >= self.pair_share:
            return None
        first = self._one(index).family
        return _creature(next(family for family in FAMILIES if family != first), rng, in_a_sentence=False)


@dataclass(frozen=True)
class _Scene:
    family: str
    looks: np.ndarray
    pose: np.ndarray
    caption: str


def _creature(name: str, rng: np.random.Generator, in_a_sentence: bool) -> _Scene:
    """A creature of one of the three kinds."""
    named = named_looks(name)
    kind = rng.integers(3)
    if kind == 0:
        species = np.full(NUM_PARTS, rng.integers(len(named)))
    elif kind == 1:
        species = rng.integers(len(named), size=NUM_PARTS)
    else:
        species = np.full(NUM_PARTS, -1)
    free = look_table("pretraining")
    free = free[rng.integers(len(free), size=NUM_PARTS)]
    looks = np.where(species[:, None] >= 0, named[species, np.arange(NUM_PARTS)], free)
    pose = rng.random(POSE_SIZE, dtype=np.float32)
    words = [PartWords(look=tuple(int(v) for v in looks[p]), species=int(species[p])) for p in range(NUM_PARTS)]
    text = caption(FAMILIES[name], words, rng, in_a_sentence)
    return _Scene(name, looks, pose, text)


def _member(scenes: list[_Scene]) -> PairMember:
    looks, pose = (
        torch.from_numpy(np.stack(column)) for column in zip(*((s.looks, s.pose) for s in scenes), strict=True)
    )
    return PairMember(scenes[0].family, looks, pose)


def named_looks(family: str) -> np.ndarray:
    """(names, parts, 3) looks of the species that have a name in captions; fixed for ever, independent of seeds."""
    table = look_table("pretraining")
    rng = numpy_generator(0, "named species", family)
    names = len(SPECIES_NAMES[family])
    return np.stack([table[rng.permutation(len(table))[:names]] for _ in range(NUM_PARTS)], axis=1)


def pose_of(seed: int, *keys: int | str) -> Tensor:
    """(POSE_SIZE,) pose of one image."""
    return torch.from_numpy(numpy_generator(seed, "pose", *keys).random(POSE_SIZE, dtype=np.float32))
