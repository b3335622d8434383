from __future__ import annotations

import math

import pytest
import torch
from attention_cases import NUM_PARTS, check_laws, check_precision, make_case
from torch.nn import functional

from partcraft_lit.losses.attention_kl import kl_attention_loss

NO_LABELS = torch.zeros(1, 1, 1)


def loss_of(*rows: list[float]) -> float:
    maps = torch.tensor(rows)[None, :, None]  # (1, T, 1, places)
    return float(kl_attention_loss(maps, torch.arange(len(rows))[None], NO_LABELS, len(rows) - 1))


def test_by_hand():
    # p = (3/4, 1/4), q = (1/4, 3/4): J = 2 * (1/2) * log 3, and exp(-J) = 1/3.
    assert loss_of([0.3, 0.1], [0.2, 0.6]) == pytest.approx(1 / 3, rel=1e-4)


def test_it_is_one_for_equal_maps_and_nearly_zero_for_parts_that_are_apart():
    assert loss_of([0.3, 0.1], [0.6, 0.2]) == pytest.approx(1.0)
    assert loss_of([0.3, 0.1, 0.0, 0.0], [0.0, 0.0, 0.1, 0.4]) < 1e-6
    assert loss_of([0.3, 0.1]) == 0.0, "one part has no rival"


def test_it_is_torchs_divergence():
    maps, _, labels = make_case(tokens=4)
    part_ids = torch.arange(4).expand(4, 4)
    rows = maps.double().flatten(2)
    rows = rows / rows.sum(dim=2, keepdim=True)
    for b, value in enumerate(kl_attention_loss(maps, part_ids, labels, NUM_PARTS)):
        terms = []
        for i in range(4):
            for j in range(i + 1, 4):
                one, other = (
                    functional.kl_div(rows[b, x].log(), rows[b, y], reduction="sum") for x, y in ((i, j), (j, i))
                )
                terms.append(math.exp(-float(one + other)))
        assert float(value) == pytest.approx(sum(terms) / len(terms), rel=1e-4)


def test_a_step_against_the_gradient_moves_parts_apart():
    maps = torch.tensor([[[[0.3, 0.2]], [[0.2, 0.3]]]], requires_grad=True)
    kl_attention_loss(maps, torch.tensor([[0, 1]]), NO_LABELS, 1).sum().backward()
    assert (maps.grad[0, 0, 0, 0] < 0) and (maps.grad[0, 0, 0, 1] > 0)
    assert (maps.grad[0, 1, 0, 0] > 0) and (maps.grad[0, 1, 0, 1] < 0)


def test_laws():
    check_laws(kl_attention_loss)
    check_precision(kl_attention_loss)
