"""Muon against the singular value decomposition, and what it leaves to AdamW."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from partcraft_lit.world.pretrain.loop import build_optimizers
from partcraft_lit.world.pretrain.muon import Muon, orthogonalized
from pretraining import loop_settings


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_singular_values_go_to_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = (left.T @ orthogonalized(matrix, iterations=10) @ right.T).diagonal()
    assert values.min() > 0.6 and values.max() < 1.3
    rest = left.T @ orthogonalized(matrix) @ right.T
    assert_close(rest - rest.diagonal().diag(), torch.zeros_like(rest), atol=1e-4, rtol=0)


def test_matrices_of_one_shape_are_made_orthogonal_each_for_itself():
    torch.manual_seed(0)
    matrices = torch.randn(3, 6, 4)
    assert_close(orthogonalized(matrices), torch.stack([orthogonalized(one) for one in matrices]))


def test_scale_of_the_gradient_does_not_matter_and_nothing_stays_nothing():
    torch.manual_seed(0)
    matrix = torch.randn(5, 7)
    assert_close(orthogonalized(1000 * matrix), orthogonalized(matrix))
    assert torch.equal(orthogonalized(torch.zeros(5, 7)), torch.zeros(5, 7))


def test_first_step_by_hand():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(4, 3, 2, 2))
    before, gradient = weight.detach().clone(), torch.randn(4, 3, 2, 2)
    weight.grad = gradient.clone()
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    # after one step the momentum is (1 - 0.95) g, and looking ahead 0.05 g + 0.95 * 0.05 g: a multiple of g
    change = 0.4 * 12**0.5 * orthogonalized(gradient.view(4, 12)).view_as(before)
    assert_close(weight.detach(), before * (1 - 0.1 * 0.5) - 0.1 * change)


def test_the_root_mean_square_of_an_update_is_near_what_was_asked():
    torch.manual_seed(0)
    weight = nn.Parameter(torch.zeros(64, 576))
    weight.grad = torch.randn(64, 576)
    Muon([weight], lr=1.0).step()
    assert 0.25 < float(weight.detach().square().mean().sqrt()) < 0.5


def test_a_vector_is_refused():
    with pytest.raises(ValueError, match="at least two dimensions"):
        Muon([nn.Parameter(torch.zeros(3))], lr=0.1)


def test_embeddings_biases_and_ends_are_left_to_adamw():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 6), nn.Linear(6, 2))
    adamw, muon = build_optimizers(model, loop_settings(steps=1, batch_size=1, lr=0.1, optimizer="muon"), [model[2]])
    assert [group["params"] for group in muon.param_groups] == [[model[1].weight]]
    assert sum(len(group["params"]) for group in adamw.param_groups) == 4
    (alone,) = build_optimizers(model, loop_settings(steps=1, batch_size=1, lr=0.1))
    assert sum(len(group["params"]) for group in alone.param_groups) == 5
    with pytest.raises(ValueError, match="neither adamw nor muon"):
        build_optimizers(model, loop_settings(steps=1, batch_size=1, lr=0.1, optimizer="sgd"))
