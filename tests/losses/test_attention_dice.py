from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_cases import NUM_PARTS, check_laws, check_precision, make_case, perfect_case
from torch.testing import assert_close

from partcraft_lit.losses.attention_dice import dice_attention_loss


def slow_loss(maps, part_ids, labels, smooth=0.0):
    """The definition once more, part by part, in NumPy."""
    maps, part_ids, labels = maps.double().numpy(), part_ids.numpy(), labels.numpy()
    result = []
    for sample, ids, label in zip(maps, part_ids, labels, strict=True):
        parts = sorted(set(ids.tolist()) - {-1})
        places = np.isin(label, parts)
        total = sample[ids >= 0].sum(axis=0)
        terms = []
        for part in parts:
            share = (sample[ids == part].sum(axis=0) / total)[places]
            mask = (label == part)[places].astype(float)
            if mask.any():
                terms.append(1 - (2 * (share * mask).sum() + smooth) / ((share**2).sum() + mask.sum() + smooth))
        result.append(np.mean(terms) if terms else 0.0)
    return torch.tensor(result)


def test_by_hand():
    # Shares of part 0 are 3/4 and 1/4, and it is in the first place: 2 * 3/4 / (9/16 + 1/16 + 1). Part 1 is its mirror.
    maps = torch.tensor([[[[0.3, 0.1]], [[0.1, 0.3]]]])
    labels = torch.tensor([[[0, 1]]], dtype=torch.uint8)
    loss = dice_attention_loss(maps, torch.tensor([[0, 1]]), labels, num_parts=1)
    assert_close(loss, torch.tensor([1 - 1.5 / 1.625]))


@pytest.mark.parametrize("smooth", [0.0, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_slow_definition(seed, smooth):
    case = make_case(seed)
    expected = slow_loss(*case, smooth)
    assert_close(dice_attention_loss(*case, NUM_PARTS, smooth).double(), expected, rtol=1e-5, atol=1e-6)


def test_it_is_zero_at_the_perfect_answer_and_one_at_the_worst():
    maps, part_ids, labels = perfect_case()
    assert_close(dice_attention_loss(maps, part_ids, labels, NUM_PARTS), torch.zeros(4))
    assert_close(dice_attention_loss(maps.roll(1, dims=1), part_ids, labels, NUM_PARTS), torch.ones(4))


def test_places_of_parts_without_a_token_change_nothing():
    maps, part_ids, labels = make_case()
    part_ids = torch.where(part_ids == 3, 2, part_ids)
    loss = dice_attention_loss(maps, part_ids, labels, NUM_PARTS)
    unlike = torch.where((labels == 3)[:, None], maps.flip(1), maps)
    assert_close(dice_attention_loss(unlike, part_ids, labels, NUM_PARTS), loss)


def test_laws():
    check_laws(dice_attention_loss)
    check_precision(dice_attention_loss)
