"""Scores of part maps, by hand on maps of four places."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from partcraft_lit.metrics.part_maps import part_map_scores

#: Places: head, head / wing, background.
LABELS = torch.tensor([[[1, 1], [2, 0]]])


def scores(*maps, ids=(1, 2), labels=LABELS):
    return part_map_scores(torch.tensor([maps]), torch.tensor([ids]), labels, num_parts=2)


def test_perfect_maps_have_perfect_scores():
    found = scores([[1.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [1.0, 0.0]])
    for values in (found.auc, found.iou, found.inside):
        assert values[0, 0].isnan() and values[0, 1:].tolist() == [1.0, 1.0]


def test_values_by_hand():
    # The head's token: 4 on a place of its own, 1 on the other, 2 on the wing, 1 on the background.
    found = scores([[4.0, 1.0], [2.0, 1.0]], [[1.0, 2.0], [3.0, 3.0]])
    # Pairs (own, other): 4 beats both; 1 loses to 2 and ties with 1: 2.5 of 4. The wing's 3 beats 1 and 2, ties with 3.
    assert_close(found.auc[0, 1:], torch.tensor([2.5 / 4, 2.5 / 3], dtype=torch.float64))
    assert_close(found.inside[0, 1:], torch.tensor([5 / 8, 3 / 9], dtype=torch.float64))
    # Of the three places of prompted parts the head wins the first alone.
    assert_close(found.iou[0, 1:], torch.tensor([1 / 2, 1 / 2], dtype=torch.float64))


def test_auc_is_that_of_scikit_learn():
    torch.manual_seed(0)
    maps, labels = torch.rand(3, 2, 8, 8).mul(10).round(), torch.randint(0, 3, (3, 8, 8))
    found = part_map_scores(maps, torch.tensor([[1, 2]] * 3), labels, num_parts=2).auc
    for image in range(3):
        for part in (1, 2):
            wanted = roc_auc_score((labels[image] == part).flatten(), maps[image, part - 1].flatten())
            assert float(found[image, part]) == pytest.approx(wanted)


def test_what_is_not_named_or_not_there_has_no_score():
    found = scores([[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], ids=(1, -1))
    assert not found.auc[0, 1].isnan() and found.auc[0, 2].isnan() and found.iou[0, 2].isnan()
    absent = scores([[1.0, 0.0], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], labels=torch.ones(1, 2, 2))
    assert absent.inside[0, 2].isnan() and absent.auc[0, 1].isnan()  # the part is the whole image


def test_coarse_maps_are_judged_at_the_side_of_the_label_map():
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[:, :4, :4] = 1
    maps = torch.zeros(1, 1, 2, 2)
    maps[0, 0, 0, 0] = 1
    found = part_map_scores(maps, torch.tensor([[1]]), labels, num_parts=1)
    # Between the two cells of a row the enlarged map falls as 1, 1, 7/8, 5/8, 3/8, 1/8, 0, 0.
    assert_close(found.inside[0, 1], torch.tensor((3.5 / 4) ** 2, dtype=torch.float64))
