from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from partcraft_lit.backbones.concept_merging import merge_models
from partcraft_lit.core.errors import UserError

OUT, WIDTH = 5, 8


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def merge_one(weight: Tensor, targets: Tensor, concepts: Tensor, captions: Tensor) -> Tensor:
    """One model that maps its concepts to the targets, as a projection of its own."""
    trained = torch.linalg.lstsq(concepts.double(), targets.double()).solution.T
    return merge_models({"w": weight}, [{"w": trained}], [concepts], captions)["w"]


def test_the_concepts_are_mapped_as_learned_to_numerical_precision():
    weight, targets, concepts, captions = (
        rand(OUT, WIDTH),
        rand(3, OUT, seed=1),
        rand(3, WIDTH, seed=2),
        rand(40, WIDTH),
    )
    merged = merge_one(weight, targets, concepts, captions)
    assert_close(merged @ concepts.T, targets.T, rtol=1e-10, atol=1e-10)
    half = merge_one(weight.float(), targets.float(), concepts.float(), captions.float())
    assert half.dtype == torch.float32
    assert_close(half @ concepts.float().T, targets.float().T, rtol=1e-4, atol=1e-5)


def test_it_is_the_solution_of_the_constrained_least_squares():
    """The same minimum by another way: Lagrange's conditions as one linear system, row by row of W."""
    weight, targets, concepts, captions = (
        rand(OUT, WIDTH),
        rand(2, OUT, seed=1),
        rand(2, WIDTH, seed=2),
        rand(30, WIDTH),
    )
    metric = captions.T @ captions
    system = torch.zeros(WIDTH + 2, WIDTH + 2, dtype=torch.float64)
    system[:WIDTH, :WIDTH], system[:WIDTH, WIDTH:], system[WIDTH:, :WIDTH] = 2 * metric, concepts.T, concepts
    rows = [
        torch.linalg.solve(system, torch.cat([2 * metric @ weight[row], targets[:, row]]))[:WIDTH] for row in range(OUT)
    ]
    merged = merge_one(weight, targets, concepts, captions)
    assert_close(merged, torch.stack(rows), rtol=1e-4, atol=1e-4)  # but for the ridge


def test_by_hand_in_two_dimensions():
    # Ordinary texts lie along x only, so all of the change goes along y: W = [1 ?] with W (1, 1) = 3.
    captions = torch.tensor([[1.0, 0.0]] * 10)
    merged = merge_one(torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0]]), torch.tensor([[1.0, 1.0]]), captions)
    assert_close(merged, torch.tensor([[1.0, 2.0]]), rtol=0, atol=1e-4)


def test_nothing_changes_where_nothing_was_learned():
    weight, concepts = rand(OUT, WIDTH), rand(3, WIDTH, seed=2)
    assert_close(merge_one(weight, concepts @ weight.T, concepts, rand(20, WIDTH)), weight)


def test_fewer_captions_than_dimensions_still_keep_the_condition():
    weight, targets, concepts = rand(OUT, WIDTH), rand(3, OUT, seed=1), rand(3, WIDTH, seed=2)
    merged = merge_one(weight, targets, concepts, rand(4, WIDTH, seed=3))
    assert_close(merged @ concepts.T, targets.T, rtol=1e-7, atol=1e-7)


def test_two_models():
    names = ("down.attn2.to_k.weight", "up.attn2.to_v.weight")
    originals = {name: rand(OUT, WIDTH, seed=number) for number, name in enumerate(names)}
    trained = [{name: w + 0.1 * rand(OUT, WIDTH, seed=9 + m) for name, w in originals.items()} for m in range(2)]
    concepts = [rand(2, WIDTH, seed=20), rand(3, WIDTH, seed=21)]
    merged = merge_models(originals, trained, concepts, rand(40, WIDTH))
    assert merged.keys() == originals.keys()
    for name in names:
        for model, states in zip(trained, concepts, strict=True):
            assert_close(states @ merged[name].T, states @ model[name].T, rtol=1e-9, atol=1e-9)
    alone = merge_one(
        originals[names[0]],
        torch.cat([states @ model[names[0]].T for model, states in zip(trained, concepts, strict=True)]),
        torch.cat(concepts),
        rand(40, WIDTH),
    )
    assert_close(merged[names[0]], alone)


def test_messages():
    weight, concepts = rand(OUT, WIDTH), rand(2, WIDTH, seed=2)
    with pytest.raises(UserError, match="two concepts have the same text"):
        merge_models({"a": weight}, [{"a": weight}], [concepts[:1].expand(2, -1)], rand(20, WIDTH))
    with pytest.raises(ValueError, match=r"must be \(n, 8\), got \(2, 8\) and \(20, 7\)"):
        merge_models({"a": weight}, [{"a": weight}], [concepts], rand(20, 7))
    with pytest.raises(UserError, match=r"Model 2 of 2 lacks 1 projections, for instance 'a'"):
        merge_models({"a": weight}, [{"a": weight}, {}], [concepts, concepts], rand(20, WIDTH))
