"""Two creatures in one image."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.core.errors import UserError
from partcraft_lit.world.creatures_pair import CreaturesPair
from partcraft_lit.world.zoo.looks import NUM_PARTS, species_table
from partcraft_lit.world.zoo.pairs import PairMember, creature_masks, draw_pair
from partcraft_lit.world.zoo.scenes import pose_of

COUNT = 12


def members() -> tuple[PairMember, PairMember]:
    looks = torch.from_numpy(species_table(COUNT, 0))
    poses = [torch.stack([pose_of(0, side, index) for index in range(COUNT)]) for side in ("left", "right")]
    return PairMember("bird", looks, poses[0]), PairMember("beast", looks.flip(0), poses[1])


def test_each_creature_is_on_its_side_and_has_its_parts():
    drawing = draw_pair(*members())
    masks = creature_masks(drawing.label_maps)
    columns = torch.arange(64.0)
    middles = []
    for creature in (1, 2):
        mask = (masks == creature).float()
        assert (mask.mean(dim=(1, 2)) > 0.02).all()
        middles.append((mask.sum(dim=1) * columns).sum(dim=1) / mask.sum(dim=(1, 2)))
    assert (middles[0] < 31).all() and (middles[1] > 33).all()
    assert int(drawing.label_maps.max()) == 2 * NUM_PARTS
    seen = [set(labels.unique().tolist()) for labels in drawing.label_maps]
    assert sum(len(labels) == 1 + 2 * NUM_PARTS for labels in seen) > COUNT / 3


def test_the_left_creature_does_not_depend_on_the_looks_of_the_right_one():
    left, right = members()
    other = PairMember(right.family, right.looks.roll(1, dims=0), right.pose)
    one, two = draw_pair(left, right), draw_pair(left, other)
    mine = (one.label_maps <= NUM_PARTS) & (two.label_maps <= NUM_PARTS)
    equal = (one.images == two.images).all(dim=1)
    inside = mine & (one.label_maps > 0)
    assert equal[inside].float().mean() > 0.97  # all but where the right one's soft edge touches it


def test_size_is_free_and_masks_count_creatures():
    drawing = draw_pair(*members(), size=96)
    assert drawing.images.shape == (COUNT, 3, 96, 96)
    labels = torch.tensor([[[0, 1, 5, 6, 10]]], dtype=torch.uint8)
    assert creature_masks(labels).tolist() == [[[0, 1, 1, 2, 2]]]


def test_the_source_shows_the_same_two_in_every_picture():
    source = CreaturesPair(bird=3, beast=4, images=3, seed=1)
    assert len({source.content_hash(index) for index in range(3)}) == 3
    assert len({source.image(index).sum().item() for index in range(3)}) == 3
    for index in range(3):
        truth = source.truth(index)
        assert truth.part_names == ("bird", "beast")
        assert truth.species == (3, 4)
        assert set(truth.label_map.unique().tolist()) == {0, 1, 2}
        assert source.alone(index, 1).shape == (3, 64, 64)
    assert not torch.equal(CreaturesPair(bird=5, beast=4, seed=1).image(0), source.image(0))


@pytest.mark.parametrize("wrong", [{"bird": 30}, {"beast": -1}, {"images": 0}, {"image_size": 8}])
def test_numbers_out_of_range(wrong):
    with pytest.raises(UserError, match=f"dataset.{next(iter(wrong))} must be between"):
        CreaturesPair(**wrong)


def test_pictures_that_are_not_there():
    with pytest.raises(IndexError, match="There are 1 images"):
        CreaturesPair().image(1)


def test_pairs_of_different_splits_share_neither_looks_nor_images():
    dev, test, every = (CreaturesPair(species_split=split) for split in ("dev", "test", "all"))
    assert len({source.content_hash(0) for source in (dev, test, every)}) == 3
    assert every.content_hash(0) == CreaturesPair().content_hash(0)
    looks = [{tuple(look) for creature in source.looks for look in creature.tolist()} for source in (dev, test)]
    assert not looks[0] & looks[1]
    with pytest.raises(UserError, match=r"dataset\.bird must be between 0 and 9, got 10"):
        CreaturesPair(bird=10, species_split="dev")
