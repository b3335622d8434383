"""Weights by area and at outlines, by hand."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.core.types import Flow
from partcraft_lit.losses.area import part_area_weights
from partcraft_lit.losses.attention import balanced_mean
from partcraft_lit.losses.objective import DiffusionObjective, FlowObjective
from partcraft_lit.losses.timestep_weights import timestep_weights

LABELS = torch.tensor([[[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0]]])


def test_area_by_hand() -> None:
    """15 places of part 0 and one of part 1: 1 / 15 each and 1, of which the mean is 2 / 16."""
    weights = part_area_weights(LABELS, 2, 4, 4, exponent=1.0, outlines=1.0)
    assert_close(weights[0, 1, 3], torch.tensor(8.0))
    assert_close(weights[LABELS == 0], torch.full((15,), 8.0 / 15))
    root = part_area_weights(LABELS, 2, 4, 4, exponent=0.5, outlines=1.0)
    assert_close(root[0, 1, 3] / root[0, 0, 0], torch.tensor(15.0).sqrt())


def test_outlines_by_hand() -> None:
    weights = part_area_weights(LABELS, 2, 4, 4, exponent=0.0, outlines=3.0)
    edge = torch.zeros(4, 4, dtype=torch.bool)
    edge[0, 3] = edge[1, 2] = edge[1, 3] = edge[2, 3] = True
    mean = (12 + 4 * 3) / 16
    assert_close(weights[0], torch.where(edge, 3.0, 1.0) / mean)


def test_laws() -> None:
    labels = torch.randint(0, 4, (3, 8, 8), generator=torch.Generator().manual_seed(0))
    labels[2] = 255  # prior images
    assert_close(part_area_weights(labels, 3, 8, 8, 0.0, 1.0), torch.ones(3, 8, 8))
    weights = part_area_weights(labels, 3, 8, 8, 0.5, 2.0)
    assert_close(weights.mean(dim=(1, 2)), torch.ones(3))
    assert bool((weights[2] == 1).all())
    assert_close(part_area_weights(labels.flip(-1), 3, 8, 8, 0.5, 2.0), weights.flip(-1))
    alike = part_area_weights(labels[:1], 3, 8, 8, 1.0, 1.0)
    assert_close(torch.stack([alike[labels[:1] == part].sum() for part in range(4)]), torch.full((4,), 16.0))
    assert part_area_weights(labels, 3, 16, 16, 0.5, 2.0).shape == (3, 16, 16)


def test_balanced_mean_by_hand() -> None:
    """Part 0 has the losses 1, 1, 1, part 1 has 5; part 2 no place."""
    values = torch.tensor([[[1.0, 1.0], [1.0, 5.0]]])
    masks = torch.zeros(1, 3, 2, 2, dtype=torch.bool)
    masks[0, 0], masks[0, 1] = values[0] == 1, values[0] == 5
    assert_close(balanced_mean(values, masks, "area"), torch.tensor([3.0]))
    assert_close(balanced_mean(values, masks, "hardest"), torch.tensor([(1 + 25) / 6]))
    assert balanced_mean(values, masks & False, "hardest").item() == 0


@pytest.mark.parametrize(("kind", "expected"), [("all", [1, 1]), ("signal", [1.5, 0.5]), ("noise", None)])
def test_timestep_weights_by_hand(kind, expected) -> None:
    """Alphas 0.9 and 0.3."""
    objective = DiffusionObjective(torch.tensor([0.81, 0.09]), "epsilon")
    weights = timestep_weights(objective, torch.tensor([0, 1]), kind)
    assert_close(weights.mean(), torch.tensor(1.0))
    if expected is None:
        sigma = torch.tensor([0.19, 0.91]).sqrt()
        assert_close(weights[1] / weights[0], sigma[1] / sigma[0])
    else:
        assert_close(weights, torch.tensor(expected, dtype=torch.float32))


def test_timestep_weights_of_flow_matching() -> None:
    objective = FlowObjective(Flow())
    at = torch.tensor([0.0, 250.0, 1000.0])
    assert_close(timestep_weights(objective, at, "signal"), torch.tensor([2.0, 1.5, 0.0]))
    assert_close(timestep_weights(objective, at, "noise"), torch.tensor([0.0, 0.5, 2.0]))
