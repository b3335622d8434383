from __future__ import annotations

import numpy as np
import pytest
import torch
from attention_cases import NUM_PARTS, check_laws, check_precision, make_case, perfect_case
from torch.testing import assert_close

from partcraft_lit.losses.attention_mse import mse_attention_loss


def slow_loss(maps, part_ids, labels):
    """Equation 2 once more, part by part, in NumPy."""
    maps, part_ids, labels = maps.double().numpy(), part_ids.numpy(), labels.numpy()
    result = []
    for sample, ids, label in zip(maps, part_ids, labels, strict=True):
        terms = []
        for part in sorted(set(ids.tolist()) - {-1}):
            mask, total = (label == part).astype(float), sample[ids == part].sum(axis=0)
            if mask.any():
                terms.append(np.mean((mask - total / total.max()) ** 2))
        result.append(sum(terms, 0.0))
    return torch.tensor(result)


def test_by_hand():
    # The map of part 1 over its maximum is (1, 1/2), its mask (1, 0); that of part 0 is (1/4, 1), its mask (0, 1).
    maps = torch.tensor([[[[0.4, 0.2]], [[0.1, 0.4]]]])
    labels = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    loss = mse_attention_loss(maps, torch.tensor([[1, 0]]), labels, num_parts=1)
    assert_close(loss, torch.tensor([(0.25 + 0.0625) / 2]))


def test_a_part_that_no_place_shows_is_left_out():
    maps = torch.tensor([[[[0.4, 0.2]], [[0.1, 0.4]]]])
    labels = torch.tensor([[[1, 1]]], dtype=torch.uint8)
    loss = mse_attention_loss(maps, torch.tensor([[1, 0]]), labels, num_parts=1)
    assert_close(loss, torch.tensor([0.25 / 2]))


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_slow_definition(seed):
    case = make_case(seed)
    assert_close(mse_attention_loss(*case, NUM_PARTS).double(), slow_loss(*case), rtol=1e-5, atol=1e-6)


def test_it_is_zero_where_each_map_is_a_multiple_of_its_mask():
    for scale in (1e-3, 0.2, 1.0):
        assert_close(mse_attention_loss(*perfect_case(scale), NUM_PARTS), torch.zeros(4))


def test_it_is_a_sum_over_parts():
    maps, _, labels = make_case(tokens=2)
    both = mse_attention_loss(maps, torch.tensor([[1, 2]]).expand(4, 2), labels, NUM_PARTS)
    single = [mse_attention_loss(maps[:, i : i + 1], torch.full((4, 1), i + 1), labels, NUM_PARTS) for i in range(2)]
    assert_close(both, single[0] + single[1])


def test_gradients_reach_the_maximum():
    """It is a constant target, but not a constant divisor: as in the release, pushing it down lifts the others."""
    maps = torch.tensor([[[[0.4, 0.2]]]], requires_grad=True)
    labels = torch.tensor([[[1, 0]]], dtype=torch.uint8)
    mse_attention_loss(maps, torch.tensor([[1]]), labels, num_parts=1).sum().backward()
    # loss = (b / a)^2 / 2: derivatives -b^2 / a^3 and b / a^2
    assert_close(maps.grad.flatten(), torch.tensor([-0.04 / 0.064, 0.2 / 0.16]))


def test_laws():
    check_laws(mse_attention_loss)
    check_precision(mse_attention_loss)


def test_messages():
    maps, part_ids, labels = make_case()
    with pytest.raises(ValueError, match=r"label_map must be \(batch, height, width\)"):
        mse_attention_loss(maps, part_ids, labels[:2], NUM_PARTS)
    with pytest.raises(ValueError, match="one part id per token"):
        mse_attention_loss(maps, part_ids[:, :2], labels, NUM_PARTS)
