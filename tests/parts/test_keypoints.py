"""Parts against boxes and keypoints, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from partcraft_lit.core.types import Annotation
from partcraft_lit.parts.keypoints import (
    OUTSIDE,
    box_iou,
    foreground_box,
    keypoint_counts,
    majority_parts,
    paired_accuracy,
    part_at,
    score_annotations,
)

#: A head above a tail on a 4 x 4 grid.
MAP = torch.tensor([[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 2, 0], [0, 0, 2, 0]], dtype=torch.uint8)


def annotation(points: list[tuple[float, float]], visible: list[bool], box: list[float] | None = None) -> Annotation:
    """Of an image of 40 x 40 pixels: 10 to a cell."""
    boxes = torch.tensor([box]) if box else torch.zeros(0, 4)
    return Annotation((40, 40), boxes, torch.tensor(points).view(-1, 2), torch.tensor(visible, dtype=torch.bool))


def test_the_label_at_a_point_by_hand():
    points = torch.tensor([[15.0, 5.0], [25.0, 39.9], [0.0, 0.0], [9.99, 0.0], [10.0, 0.0], [40.0, 5.0], [5.0, -1.0]])
    assert part_at(MAP, (40, 40), points).tolist() == [1, 2, 0, 0, 1, OUTSIDE, OUTSIDE]


def test_long_pictures_are_read_in_their_middle():
    # 100 x 500: the middle 300 columns are left, 75 pixels to a cell
    points = torch.tensor([[99.0, 10.0], [100.0, 10.0], [176.0, 10.0], [399.0, 10.0], [400.0, 10.0]])
    assert part_at(MAP, (100, 500), points).tolist() == [OUTSIDE, 0, 1, 0, OUTSIDE]
    assert foreground_box(MAP, (100, 500)).tolist() == [175.0, 0.0, 325.0, 100.0]


def test_boxes_by_hand():
    assert foreground_box(MAP, (40, 40)).tolist() == [10.0, 0.0, 30.0, 40.0]
    assert foreground_box(torch.zeros(4, 4, dtype=torch.uint8), (40, 40)) is None
    square = torch.tensor([0.0, 0.0, 2.0, 2.0])
    assert box_iou(square, square) == 1.0
    assert box_iou(square, square + 1) == pytest.approx(1 / 7)
    assert box_iou(square, square + 2) == 0.0
    assert box_iou(square, torch.zeros(4)) == 0.0


def test_counts_majorities_and_pairs_by_hand():
    found = torch.tensor([[1, 1, 2], [1, 2, 2], [1, 1, 0], [0, 1, 0]])
    visible = torch.tensor([[True, True, True], [True, True, True], [True, False, True], [True, True, True]])
    counts = keypoint_counts(found, visible, num_parts=2)
    assert counts.tolist() == [[1, 3, 0], [0, 2, 1], [2, 0, 2]]
    parts, shares = majority_parts(counts)
    assert parts == [1, 1, 2] and shares == pytest.approx([3 / 4, 2 / 3, 2 / 4])
    assert paired_accuracy(counts) == (3 + 2) / (4 + 4)  # kinds 0 and 2; kind 1 has no part left


def test_a_kind_that_lies_on_no_part_has_none():
    parts, shares = majority_parts(torch.tensor([[4, 0, 0], [0, 0, 0]]))
    assert parts == [None, None] and shares[0] == 0.0 and math.isnan(shares[1])


def test_the_truth_itself_scores_one():
    eye, tail = (15.0, 5.0), (25.0, 35.0)
    given = [annotation([eye, eye, tail], [True, True, True], [10.0, 0.0, 30.0, 40.0]) for _ in range(3)]
    quality = score_annotations(given, [MAP] * 3, 2, ["eye", "beak", "tail"])
    assert quality.box_iou == quality.box_found == quality.keypoint_accuracy == quality.keypoint_in_foreground == 1.0
    assert quality.part_of == {"eye": 1, "beak": 1, "tail": 2}
    assert quality.holds == {1: ("eye", "beak"), 2: ("tail",)}
    assert quality.keypoint_accuracy_paired == 1.0
    assert quality.keypoint_nmi == pytest.approx(2 * 0.6365 / (math.log(3) + 0.6365), abs=1e-3)  # two kinds share one


def test_one_part_for_everything_is_seen_through():
    whole = (MAP > 0).to(torch.uint8)
    quality = score_annotations([annotation([(15.0, 5.0), (25.0, 35.0)], [True, True])], [whole], 2, ["eye", "tail"])
    assert quality.keypoint_accuracy == quality.keypoint_in_foreground == 1.0
    assert quality.keypoint_nmi == pytest.approx(0.0, abs=1e-9)
    assert math.isnan(quality.box_iou)


def test_hidden_keypoints_say_nothing():
    shown = annotation([(15.0, 5.0), (0.0, 0.0)], [True, False])  # CUB writes 0 0 for what cannot be seen
    quality = score_annotations([shown], [MAP], 2, ["eye", "tail"])
    assert quality.keypoint_accuracy == 1.0 and quality.part_of == {"eye": 1, "tail": None}
    assert math.isnan(quality.accuracy_of["tail"])


def test_several_objects_are_compared_by_the_box_around_them():
    boxes = torch.tensor([[10.0, 0.0, 20.0, 20.0], [20.0, 20.0, 30.0, 40.0]])
    two = Annotation((40, 40), boxes, torch.zeros(0, 2), torch.zeros(0, dtype=torch.bool))
    quality = score_annotations([two], [MAP], 2, [])
    assert quality.box_iou == 1.0 and math.isnan(quality.keypoint_accuracy) and quality.part_of == {}
    assert math.isnan(quality.keypoint_accuracy_paired)


def test_an_image_without_foreground_scores_zero():
    empty = torch.zeros(4, 4, dtype=torch.uint8)
    quality = score_annotations([annotation([(15.0, 5.0)], [True], [0.0, 0.0, 40.0, 40.0])], [empty], 2, ["eye"])
    assert quality.box_iou == quality.box_found == quality.keypoint_accuracy == 0.0


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="1 annotations and 2 label maps"):
        score_annotations([annotation([], [])], [MAP, MAP], 2, [])


@given(st.permutations([1, 2, 3]), st.integers(0, 2**31))
def test_numbers_of_parts_do_not_matter(order, seed):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randint(0, 4, (5, 4, 4), generator=generator).to(torch.uint8)
    points = torch.rand(5, 3, 2, generator=generator) * 40
    given_ = [
        Annotation((40, 40), torch.tensor([[0.0, 0.0, 40.0, 40.0]]), p, torch.ones(3, dtype=torch.bool)) for p in points
    ]
    renumbered = torch.tensor([0, *order], dtype=torch.uint8)[maps.long()]
    first, second = (score_annotations(given_, list(m), 3, ["a", "b", "c"]) for m in (maps, renumbered))
    for key in ("box_iou", "keypoint_accuracy", "keypoint_accuracy_paired", "keypoint_nmi", "keypoint_in_foreground"):
        assert getattr(first, key) == pytest.approx(getattr(second, key)), key
    assert first.keypoint_accuracy <= first.keypoint_in_foreground
