"""Creatures with parts of the other family: what shows, where, and in front of what."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.world.zoo.chimeras import FIRST_GUEST, PLACES, draw_chimera, other_family, replaced_parts
from partcraft_lit.world.zoo.draw import ASIDE_COLUMN, POSE_SIZE, draw
from partcraft_lit.world.zoo.looks import FAMILIES, look_table
from partcraft_lit.world.zoo.shapes import PLANS

EVERY = [(family, part) for family in FAMILIES for part in FAMILIES[family].part_names]


@pytest.fixture(scope="module")
def scene() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    pose = torch.rand(6, POSE_SIZE, generator=generator)
    pose[:, [ASIDE_COLUMN, 28]] = 1.0
    table = torch.from_numpy(look_table("pretraining"))
    return table[torch.randint(len(table), (6, 5), generator=generator)], pose


@pytest.mark.parametrize(("family", "part"), EVERY)
def test_a_guest_shows_and_takes_the_place_it_is_given(scene, family, part) -> None:
    looks, pose = scene
    other = other_family(family)
    whole = draw(PLANS[other.noun], looks, pose)
    guest = torch.tensor([[0, 0, 0]]).expand(6, 3)
    made = draw_chimera(family, looks, {part: guest}, pose)
    label = FIRST_GUEST + FAMILIES[family].part_names.index(part)
    assert bool(((made.label_maps == label).sum(dim=(1, 2)) >= 8).all()), "it can be seen in every image"
    shown = {other.part_names[int(value) - 1] for value in made.label_maps.unique() if 0 < value < FIRST_GUEST}
    assert shown == set(other.part_names) - set(PLACES[family][part].replaces)
    background = (whole.label_maps == 0) & (made.label_maps == 0)
    same = (made.images == whole.images).all(dim=1)
    assert same[background].float().mean() > 0.9, "all but soft edges"
    colored = draw_chimera(family, looks, {part: torch.tensor([[0, 5, 0]]).expand(6, 3)}, pose)
    differs = (colored.images != made.images).any(dim=1)
    own = made.label_maps == label
    assert differs[own].float().mean() > 0.6, "its colour shows where it is, but for eyes and beaks"
    assert differs[~own].float().mean() < 0.05, "and nowhere else, but for soft edges"


def test_several_guests_and_none(scene) -> None:
    looks, pose = scene
    none = draw_chimera("bird", looks, {}, pose)
    assert torch.equal(none.images, draw(PLANS["beast"], looks, pose).images)
    guests = {"head": torch.zeros(6, 3, dtype=torch.long), "wing": torch.ones(6, 3, dtype=torch.long)}
    labels = set(draw_chimera("bird", looks, guests, pose).label_maps.unique().tolist())
    assert {FIRST_GUEST, FIRST_GUEST + 2} <= labels and replaced_parts("bird", guests) == {"ears", "muzzle"}
