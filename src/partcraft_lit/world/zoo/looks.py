"""Looks of parts: shapes, colours and textures, split into pretraining and held-out ones.

A look is (shape, colour, texture). The looks are split by rule, so that what the base model was pretrained on and what
a run is asked to learn never share one: a look is *held out* (for training species) if shape + colour + texture is
divisible by three, else it belongs to *pretraining*. Every colour, texture and shape occurs on both sides, so a
pretrained model can draw a held-out look, but has never seen it.

Held-out looks are split once more, by colour and texture: settings are chosen on *development* species, and methods
compared on *test* species, which share no look with them, whatever the seeds. On both sides a colour alone tells no
species.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.randomness import numpy_generator

World = Literal["pretraining", "held_out"]
#: Of the held-out looks: all of them, those on which settings are chosen, those on which methods are compared.
SpeciesSplit = Literal["all", "dev", "test"]

COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.86, 0.16, 0.17),
    "orange": (0.97, 0.53, 0.11),
    "yellow": (0.97, 0.85, 0.22),
    "green": (0.24, 0.63, 0.25),
    "teal": (0.10, 0.62, 0.64),
    "blue": (0.17, 0.34, 0.83),
    "purple": (0.51, 0.23, 0.70),
    "pink": (0.97, 0.55, 0.72),
    "brown": (0.45, 0.27, 0.14),
    "white": (0.95, 0.95, 0.93),
}
#: Colour of the stripes and spots on each colour: far in lightness, so that a texture is seen on any colour.
ACCENTS: dict[str, tuple[float, float, float]] = {
    "red": (0.99, 0.86, 0.80),
    "orange": (0.42, 0.17, 0.03),
    "yellow": (0.40, 0.27, 0.05),
    "green": (0.85, 0.97, 0.72),
    "teal": (0.86, 0.99, 0.97),
    "blue": (0.80, 0.90, 1.00),
    "purple": (0.95, 0.85, 1.00),
    "pink": (0.47, 0.07, 0.30),
    "brown": (0.96, 0.87, 0.72),
    "white": (0.22, 0.22, 0.26),
}
TEXTURES: tuple[str, ...] = ("plain", "striped", "spotted")


@dataclass(frozen=True)
class Family:
    """One body plan. ``shapes`` has one tuple of shape words per part, in the order of ``part_names``."""

    noun: str
    part_names: tuple[str, ...]
    shapes: tuple[tuple[str, ...], ...]


BIRD = Family(
    noun="bird",
    part_names=("head", "body", "wing", "tail", "legs"),
    shapes=(
        ("round", "crested", "billed", "tufted"),
        ("round", "slim", "plump", "tall"),
        ("folded", "pointed", "raised", "feathered"),
        ("long", "fanned", "forked", "wedge"),
        ("short", "long", "webbed", "fluffy"),
    ),
)
BEAST = Family(
    noun="beast",
    part_names=("ears", "muzzle", "body", "legs", "tail"),
    shapes=(
        ("pointed", "floppy", "round", "long"),
        ("short", "long", "broad", "slim"),
        ("round", "slim", "plump", "tall"),
        ("short", "long", "thick", "fluffy"),
        ("long", "raised", "fluffy", "stubby"),
    ),
)
FAMILIES: dict[str, Family] = {"bird": BIRD, "beast": BEAST}
NUM_PARTS = 5
NUM_SHAPES = 4


def family_of(name: str) -> Family:
    """The family of that name.

    Raises:
        UserError: if there is none.
    """
    if name not in FAMILIES:
        raise UserError(f"There is no family {name!r} of creatures. {did_you_mean(name, FAMILIES)}")
    return FAMILIES[name]


def look_table(world: World) -> np.ndarray:
    """(looks, 3) int array of all looks of a world, columns shape, colour, texture."""
    shape, color, texture = np.meshgrid(
        np.arange(NUM_SHAPES), np.arange(len(COLORS)), np.arange(len(TEXTURES)), indexing="ij"
    )
    looks = np.stack([shape.ravel(), color.ravel(), texture.ravel()], axis=1)
    held_out = looks.sum(axis=1) % 3 == 0
    return looks[held_out if world == "held_out" else ~held_out]


def split_of(looks: np.ndarray) -> np.ndarray:
    """(looks,) bool: whether each of (looks, 3) is one of development.

    These are two of the three textures of every other colour: 10 of the 30 pairs of colour and texture.
    """
    color, texture = looks[:, 1], looks[:, 2]
    development: np.ndarray = (color % 2 == 0) & (texture != color % len(TEXTURES))
    return development


def most_species(split: SpeciesSplit = "all") -> int:
    """How many species of a split there are whose parts can be told apart."""
    looks = _looks_of("held_out", split)
    return len(np.unique(looks[:, 1:], axis=0))


def species_table(count: int, seed: int, world: World = "held_out", split: SpeciesSplit = "all") -> np.ndarray:
    """(count, parts, 3) int looks of ``count`` species, a function of (seed, world, split) alone.

    Within one part no two species share colour and texture, as long as there are enough pairs: 30, of which 10 are for
    development and 20 for tests.

    Raises:
        UserError: if ``count`` is not between 1 and the number of colour and texture pairs.
    """
    looks = _looks_of(world, split)
    pairs = len(np.unique(looks[:, 1:], axis=0))
    if not 1 <= count <= pairs:
        which = "" if split == "all" else f" (dataset.species_split={split})"
        raise UserError(f"A zoo has 1 to {pairs} species whose parts can be told apart{which}, got {count}.")
    table = np.empty((count, NUM_PARTS, 3), dtype=np.int64)
    for part in range(NUM_PARTS):
        rng = numpy_generator(seed, "species", world, *([] if split == "all" else [split]), part)
        shuffled = looks[rng.permutation(len(looks))]
        _, first = np.unique(shuffled[:, 1] * len(TEXTURES) + shuffled[:, 2], return_index=True)
        distinct = shuffled[np.sort(first)]  # one look for each colour and texture, in random order
        table[:, part] = distinct[:count]
    return table


def _looks_of(world: World, split: SpeciesSplit) -> np.ndarray:
    looks = look_table(world)
    return looks if split == "all" else looks[split_of(looks) == (split == "dev")]
