"""Cross-entropies of parts and codes, by hand."""

from __future__ import annotations

import math

import torch
from torch.testing import assert_close

from partcraft_lit.core.types import ABSENT
from partcraft_lit.losses.part_prediction import part_prediction_loss


def test_by_hand() -> None:
    """Three places of part 0 and one of part 1; parts weigh alike, whatever they cover."""
    labels = torch.tensor([[[0, 0], [0, 1]]])
    parts = torch.zeros(1, 3, 2, 2)
    parts[0, 0, :, :] = math.log(2.0)  # (2, 1, 1) / 4 at every place
    codes = torch.zeros(1, 3, 4)
    codes[0, 1, 2] = math.log(3.0)  # (1, 1, 3, 1) / 6
    of_places = (math.log(4 / 2) + math.log(4 / 1)) / 2
    given = torch.tensor([[ABSENT, 2, 1]])  # part 2 shows nowhere
    assert_close(part_prediction_loss(parts, codes, labels, given), torch.tensor([of_places + math.log(6 / 3)]))
    both = torch.tensor([[0, 2, 1]])
    expected = of_places + (math.log(4) + math.log(2)) / 2
    assert_close(part_prediction_loss(parts, codes, labels, both), torch.tensor([expected]))


def test_what_is_no_part_is_not_scored() -> None:
    labels = torch.full((2, 2, 2), 255)
    labels[1, 0, 0] = 1
    parts = torch.randn(2, 3, 2, 2, requires_grad=True)
    values = part_prediction_loss(parts, torch.randn(2, 3, 4), labels, torch.full((2, 3), ABSENT))
    assert values[0] == 0 and values[1] > 0
    values.sum().backward()
    assert_close(parts.grad.abs().sum(dim=1) > 0, labels == 1)


def test_zero_at_the_perfect_answer_and_gradcheck() -> None:
    labels, codes = torch.tensor([[[0, 1], [2, 1]]]), torch.tensor([[3, 0, 1]])
    right = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1) * 100.0
    of_codes = torch.nn.functional.one_hot(codes, 4) * 100.0
    assert_close(part_prediction_loss(right, of_codes, labels, codes), torch.zeros(1))
