"""The two worlds of looks, and the species made of them."""

from __future__ import annotations

import numpy as np
import pytest

from partcraft_lit.core.errors import UserError
from partcraft_lit.world.zoo.looks import (
    ACCENTS,
    COLORS,
    FAMILIES,
    NUM_PARTS,
    NUM_SHAPES,
    TEXTURES,
    family_of,
    look_table,
    most_species,
    species_table,
)


def as_set(table: np.ndarray) -> set[tuple[int, ...]]:
    return {tuple(int(value) for value in row) for row in table.reshape(-1, 3)}


def test_worlds_share_no_look_and_leave_none_out():
    pretraining, held_out = as_set(look_table("pretraining")), as_set(look_table("held_out"))
    assert not pretraining & held_out
    assert len(pretraining | held_out) == NUM_SHAPES * len(COLORS) * len(TEXTURES) == 120
    assert len(pretraining) == 80


@pytest.mark.parametrize("world", ["pretraining", "held_out"])
def test_every_shape_color_and_texture_occurs_in_both_worlds(world):
    table = look_table(world)
    for column, count in enumerate((NUM_SHAPES, len(COLORS), len(TEXTURES))):
        assert set(table[:, column].tolist()) == set(range(count))


def test_species_of_the_held_out_world_have_held_out_looks_only():
    assert as_set(species_table(30, seed=3)) <= as_set(look_table("held_out"))


@pytest.mark.parametrize("world", ["pretraining", "held_out"])
@pytest.mark.parametrize("seed", range(5))
def test_no_two_species_share_color_and_texture_of_a_part(world, seed):
    table = species_table(30, seed, world)
    for part in range(NUM_PARTS):
        pairs = {tuple(pair) for pair in table[:, part, 1:].tolist()}
        assert len(pairs) == 30


def test_more_species_leave_the_first_as_they_are():
    np.testing.assert_array_equal(species_table(30, seed=1)[:7], species_table(7, seed=1))


def test_species_are_a_function_of_the_seed():
    np.testing.assert_array_equal(species_table(20, seed=5), species_table(20, seed=5))
    assert (species_table(20, seed=5) != species_table(20, seed=6)).any()


@pytest.mark.parametrize("count", [-1, 0, 31])
def test_too_few_or_too_many_species_are_refused(count):
    with pytest.raises(UserError, match=rf"1 to 30 species.*got {count}"):
        species_table(count, seed=0)


def test_species_of_development_and_of_tests_share_no_look_whatever_the_seeds():
    dev = set().union(*(as_set(species_table(10, seed, split="dev")) for seed in range(20)))
    test = set().union(*(as_set(species_table(20, seed, split="test")) for seed in range(20)))
    assert not dev & test and dev | test == as_set(look_table("held_out"))
    assert not {look[1:] for look in dev} & {look[1:] for look in test}


@pytest.mark.parametrize(("split", "count"), [("all", 30), ("dev", 10), ("test", 20)])
def test_a_split_has_every_shape_and_texture_and_no_color_tells_its_species(split, count):
    assert most_species(split) == count
    every = np.concatenate([species_table(count, seed, split=split).reshape(-1, 3) for seed in range(5)])
    assert set(every[:, 0]) == set(range(NUM_SHAPES)) and set(every[:, 2]) == set(range(len(TEXTURES)))
    colors, textures = np.unique(np.unique(every[:, 1:], axis=0)[:, 0], return_counts=True)
    assert textures.mean() >= 2 and len(colors) >= 5
    with pytest.raises(UserError, match=rf"1 to {count} species.*got {count + 1}"):
        species_table(count + 1, 0, split=split)


def test_an_unknown_family_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"no family 'brid'.*Did you mean 'bird'"):
        family_of("brid")


def test_families_have_a_word_for_each_part_and_shape():
    for family in FAMILIES.values():
        assert len(family.part_names) == len(set(family.part_names)) == NUM_PARTS
        assert all(len(set(shapes)) == NUM_SHAPES for shapes in family.shapes)


def test_a_texture_is_far_in_lightness_from_its_ground():
    assert ACCENTS.keys() == COLORS.keys()
    weights = np.array([0.299, 0.587, 0.114])
    for name, color in COLORS.items():
        assert abs(weights @ np.array(color) - weights @ np.array(ACCENTS[name])) > 0.3, name


def test_colors_are_far_from_each_other():
    values = np.array(list(COLORS.values()))
    distance = np.linalg.norm(values[:, None] - values[None], axis=2) + np.eye(len(values)) * 9
    assert distance.min() > 0.2
