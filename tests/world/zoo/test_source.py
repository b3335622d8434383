"""The data set of creatures: an image source that knows the truth."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT, GroundTruthSource
from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.zoo.looks import species_table


@pytest.fixture(scope="module")
def creatures() -> Creatures:
    return Creatures(species=6, images_per_species=20, seed=4)


def test_it_is_a_source_with_labels_and_truth(creatures):
    assert isinstance(creatures, GroundTruthSource)
    assert len(creatures) == 120
    assert creatures.class_noun == "bird"
    assert [creatures.label(index) for index in (0, 19, 20, 119)] == [0, 0, 1, 5]
    assert creatures.name(21) == "species_01/001"
    assert list(creatures.part_names) == ["head", "body", "wing", "tail", "legs"]


def test_equal_settings_give_equal_bytes(creatures):
    again = Creatures(species=6, images_per_species=20, seed=4)
    for index in (119, 0, 57):
        assert torch.equal(creatures.image(index), again.image(index))
        assert torch.equal(creatures.truth(index).label_map, again.truth(index).label_map)


def test_a_picture_equals_its_render_alone(creatures):
    for index in (0, 33, 119):
        drawing = creatures.render(torch.full((1, 5), creatures.label(index)), [index])
        assert torch.equal(drawing.images[0], creatures.image(index))
        assert torch.equal(drawing.label_maps[0], creatures.truth(index).label_map)


def test_more_species_and_pictures_leave_those_there_as_they_are(creatures):
    more = Creatures(species=9, images_per_species=31, seed=4)
    assert torch.equal(more.image(31 * 2 + 5), creatures.image(20 * 2 + 5))


def test_seeds_change_looks_and_poses(creatures):
    other = Creatures(species=6, images_per_species=20, seed=5)
    assert not any(torch.equal(creatures.image(i), other.image(i)) for i in range(0, 120, 17))


def test_truth_fits_the_mask(creatures):
    for index in range(len(creatures)):
        truth = creatures.truth(index)
        assert truth.label_map.shape == (64, 64)
        assert truth.label_map.dtype == torch.uint8
        pixels = [int((truth.label_map == part + 1).sum()) for part in range(5)]
        expected = tuple(creatures.label(index) if count >= 8 else ABSENT for count in pixels)
        assert truth.species == expected


def test_a_part_out_of_view_is_absent_in_the_truth():
    truth = Creatures(species=6, images_per_species=20, seed=6).truth(42)  # its tail is behind the edge but for a pixel
    assert truth.species == (2, 2, 2, ABSENT, 2)
    assert int((truth.label_map == 4).sum()) < 8


def test_hybrids_take_each_part_from_its_species(creatures):
    species = torch.tensor([[0, 1, 2, 3, 4]])
    hybrid = creatures.render(species, [7])
    looks = torch.from_numpy(species_table(6, seed=4))
    for part in range(5):
        donor = species.clone()
        donor[0, part] = 5
        other = creatures.render(donor, [7])
        changed = (hybrid.images != other.images).any(dim=1) | (hybrid.label_maps != other.label_maps)
        assert bool(changed.any()) == bool(hybrid.visible[0, part] or other.visible[0, part])
        assert not torch.equal(looks[part, part], looks[5, part])


def test_hashes_name_the_pixels(creatures):
    hashes = {creatures.content_hash(index) for index in range(len(creatures))}
    assert len(hashes) == len(creatures)
    again = Creatures(species=6, images_per_species=20, seed=4)
    assert again.content_hash(77) == creatures.content_hash(77)
    others = [
        Creatures(species=6, images_per_species=20, seed=5),
        Creatures(species=6, images_per_species=20, seed=4, image_size=32),
        Creatures(species=6, images_per_species=20, seed=4, family="beast"),
    ]
    assert hashes.isdisjoint(other.content_hash(index) for other in others for index in range(len(other)))


def test_splits_share_neither_images_nor_hashes():
    whole, dev, test = (Creatures(species=4, images_per_species=2, species_split=s) for s in ("all", "dev", "test"))
    assert len({source.content_hash(index) for source in (whole, dev, test) for index in range(8)}) == 24
    assert not torch.equal(dev.image(0), test.image(0))
    assert torch.equal(whole.image(3), Creatures(species=4, images_per_species=2).image(3))


def test_held_out_images_are_the_further_ones_of_each_species(creatures):
    held_out = creatures.held_out(13)
    assert len(held_out) == 18 and held_out.label(17) == 5 and held_out.name(3) == "species_01/020"
    more = Creatures(species=6, images_per_species=23, seed=4)
    for number in range(3):
        assert torch.equal(held_out.image(2 * 3 + number), more.image(2 * 23 + 20 + number))
        assert held_out.content_hash(2 * 3 + number) == more.content_hash(2 * 23 + 20 + number)
    assert torch.equal(creatures.image(40), Creatures(species=6, images_per_species=20, seed=4).image(40))
    assert torch.equal(held_out.looks, creatures.looks)


@pytest.mark.parametrize("size", [16, 48, 128])
def test_sizes(size):
    creatures = Creatures(species=2, images_per_species=3, image_size=size)
    assert creatures.image(5).shape == (3, size, size)
    assert creatures.truth(5).label_map.shape == (size, size)


def test_beasts():
    beasts = Creatures(species=3, images_per_species=2, family="beast")
    assert beasts.class_noun == "beast"
    assert beasts.part_names[0] == "ears"
    assert beasts.truth(0).part_names == tuple(beasts.part_names)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"species": 0}, "1 to 30 species"),
        ({"species": 31}, "got 31"),
        ({"species": 11, "species_split": "dev"}, r"1 to 10 species.*dev.*got 11"),
        ({"images_per_species": 0}, r"dataset\.images_per_species must be at least 1, got 0"),
        ({"image_size": 8}, r"dataset\.image_size must be at least 16, got 8"),
        ({"family": "beats"}, "Did you mean 'beast'"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        Creatures(**settings)


@pytest.mark.parametrize("index", [-1, 120])
def test_there_is_no_picture_beyond_the_last(creatures, index):
    for ask in (creatures.image, creatures.truth, creatures.label, creatures.name, creatures.content_hash):
        with pytest.raises(IndexError, match=f"120 creatures, so no number {index}"):
            ask(index)


def test_some_birds_lack_a_part_as_photographed_ones_do():
    """In CUB 2 % of the images show no legs."""
    source = Creatures(species=20, images_per_species=30)
    absent = [ABSENT in source.truth(index).species for index in range(len(source))]
    assert 0.01 < sum(absent) / len(absent) < 0.06
