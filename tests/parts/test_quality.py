from __future__ import annotations

import math

import pytest
import torch

from discovery import discover
from partcraft_lit.core.types import ABSENT, GroundTruth
from partcraft_lit.parts.quality import confusion, normalized_mutual_information, pairwise_iou, score_parts


class Given:
    """A truth that is simply given."""

    part_names = ("head", "legs")

    def __init__(self, label_maps: torch.Tensor, species: list[tuple[int, int]]) -> None:
        self.label_maps, self.species = label_maps, species

    def __len__(self) -> int:
        return len(self.label_maps)

    def truth(self, index: int) -> GroundTruth:
        return GroundTruth(self.label_maps[index], self.species[index], self.part_names)


@pytest.fixture
def given() -> Given:
    generator = torch.Generator().manual_seed(0)
    label_maps = torch.randint(0, 3, (40, 8, 8), generator=generator).to(torch.uint8)
    return Given(label_maps, [(index % 4, index % 3) for index in range(40)])


def test_the_truth_itself_scores_one_whatever_its_numbers(given):
    renumbered = torch.tensor([0, 2, 1], dtype=torch.uint8)[given.label_maps.long()]
    codes = torch.tensor([[0, 2 - b, 3 - a] for a, b in given.species])
    quality = score_parts(given, list(renumbered), codes)
    assert quality.match == {"head": 2, "legs": 1}
    assert quality.foreground_iou == quality.mean_part_iou == 1.0
    assert quality.part_iou == {"head": 1.0, "legs": 1.0}
    assert quality.nmi == pytest.approx({"head": 1.0, "legs": 1.0})
    assert quality.nmi_shuffled < 0.25


def test_random_parts_score_what_chance_gives(given):
    generator = torch.Generator().manual_seed(1)
    label_maps = list(torch.randint(0, 3, (40, 8, 8), generator=generator).to(torch.uint8))
    codes = torch.randint(0, 3, (40, 3), generator=generator)
    quality = score_parts(given, label_maps, codes)
    assert quality.mean_part_iou == pytest.approx(1 / 5, abs=0.03)  # 1/9 of pixels agree, 5/9 are in either
    assert quality.foreground_iou == pytest.approx(1 / 2, abs=0.03)  # 4/9 over 8/9
    assert quality.mean_nmi < 0.25


def test_coarse_maps_and_missing_parts_by_hand():
    truth = torch.zeros(1, 4, 4, dtype=torch.uint8)
    truth[0, :2, :2] = 1
    truth[0, 3, 3] = 2
    source = Given(truth, [(5, ABSENT)])
    quality = score_parts(source, [torch.tensor([[1, 0], [0, 1]], dtype=torch.uint8)], torch.tensor([[0, 0]]))
    assert quality.match == {"head": 1, "legs": None}
    assert quality.part_iou == {"head": 0.5, "legs": 0.0}  # 4 of 8 pixels
    assert quality.foreground_iou == 5 / 8
    assert math.isnan(quality.nmi["legs"])
    assert quality.mean_nmi == 1.0


def test_lengths_must_agree(given):
    with pytest.raises(ValueError, match="40 images, 1 label maps and 2 rows"):
        score_parts(given, [given.label_maps[0]], torch.zeros(2, 3, dtype=torch.long))


def test_confusion_and_iou_by_hand():
    counts = confusion([torch.tensor([[0, 1], [1, 1]])], [torch.tensor([[0, 0], [1, 1]])], 2, 2)
    assert counts.tolist() == [[1, 0], [1, 2]]
    assert pairwise_iou(counts).tolist() == [[1 / 2, 0], [1 / 4, 2 / 3]]


def test_nmi_by_hand():
    first = torch.tensor([0, 0, 1, 1])
    assert normalized_mutual_information(first, torch.tensor([7, 7, 3, 3])) == pytest.approx(1.0)
    assert normalized_mutual_information(first, torch.tensor([0, 1, 0, 1])) == pytest.approx(0.0)
    # I = ln 2 - H(joint given) : H(first) = ln 2, H(second) = 1.5 ln 2, H(joint) = 1.5 ln 2, so I = ln 2
    assert normalized_mutual_information(first, torch.tensor([0, 0, 1, 2])) == pytest.approx(1 / 1.25)
    assert normalized_mutual_information(first, torch.zeros(4, dtype=torch.long)) == pytest.approx(0.0)
    assert math.isnan(normalized_mutual_information(first[:0], first[:0]))


def test_colours_find_the_foreground_of_drawn_creatures_better_than_chance():
    from partcraft_lit.parts.color import ColorFeatures
    from partcraft_lit.world.creatures import Creatures

    source = Creatures(species=4, images_per_species=8)
    found = discover(source, ColorFeatures(), M=5, K=4, nredo=2)
    quality = score_parts(source, found.label_maps, found.codes)
    elsewhere = found.label_maps[5:] + found.label_maps[:5]  # of other pictures: equal shares, wrong places
    chance = score_parts(source, elsewhere, found.codes)
    assert quality.foreground_iou > chance.foreground_iou + 0.1
    assert quality.mean_part_iou > chance.mean_part_iou
