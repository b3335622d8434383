"""What is in each picture of a world, as a function of (seed, index): looks, pose, and a caption."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from partcraft_lit.randomness import numpy_generator
from partcraft_lit.zoo.captions import SPECIES_NAMES, PartWords, caption
from partcraft_lit.zoo.draw import POSE_SIZE, Drawing, draw
from partcraft_lit.zoo.looks import FAMILIES, NUM_PARTS, Family, look_table
from partcraft_lit.zoo.shapes import PLANS


@dataclass(frozen=True)
class PretrainingScenes:
    """Endless captioned creatures for the base model; no look of the held-out world is among them.

    Three kinds of creature come in equal shares: one named species whole, parts of several named species, and free
    looks. A named species has a fixed look for every part, so the base model learns that one word can stand for a rich
    look, as "cardinal" or "zebra" do in a large model.

    Args:
        seed: decides everything together with the index.
        size: side in pixels.
        beast_share: share of the four-legged family.
    """

    seed: int = 0
    size: int = 64
    beast_share: float = 0.1

    def batch(self, indices: range) -> tuple[Drawing, list[str]]:
        """Pictures and captions of the given indices."""
        drawings: dict[str, Drawing] = {}
        rows = [self._one(index) for index in indices]
        images = torch.empty(len(rows), 3, self.size, self.size, dtype=torch.uint8)
        label_maps = torch.empty(len(rows), self.size, self.size, dtype=torch.uint8)
        for family in FAMILIES:
            mine = [i for i, row in enumerate(rows) if row[0] == family]
            if mine:
                looks = torch.from_numpy(np.stack([rows[i][1] for i in mine]))
                pose = torch.from_numpy(np.stack([rows[i][2] for i in mine]))
                drawings[family] = draw(PLANS[family], looks, pose, self.size)
                images[mine] = drawings[family].images
                label_maps[mine] = drawings[family].label_maps
        return Drawing(images, label_maps), [row[3] for row in rows]

    def looks(self, indices: range) -> Tensor:
        """(B, parts, 3) shape, colour and texture of every part."""
        return torch.from_numpy(np.stack([self._one(index)[1] for index in indices]))

    def family(self, index: int) -> Family:
        """Which family a picture shows."""
        return FAMILIES[self._family(numpy_generator(self.seed, "pretraining", index))]

    def _family(self, rng: np.random.Generator) -> str:
        return "beast" if rng.random() < self.beast_share else "bird"

    def _one(self, index: int) -> tuple[str, np.ndarray, np.ndarray, str]:
        rng = numpy_generator(self.seed, "pretraining", index)
        family = self._family(rng)
        named = named_looks(family)
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
        return family, looks, pose, caption(FAMILIES[family], words, rng)


def named_looks(family: str) -> np.ndarray:
    """(names, parts, 3) looks of the species that have a name in captions; fixed for ever, independent of seeds."""
    table = look_table("pretraining")
    rng = numpy_generator(0, "named species", family)
    names = len(SPECIES_NAMES[family])
    return np.stack([table[rng.permutation(len(table))[:names]] for _ in range(NUM_PARTS)], axis=1)


def pose_of(seed: int, *keys: int | str) -> Tensor:
    """(POSE_SIZE,) pose of one picture."""
    return torch.from_numpy(numpy_generator(seed, "pose", *keys).random(POSE_SIZE, dtype=np.float32))
