"""Silhouette and maps of tokens."""

from __future__ import annotations

import math

import pytest
import torch

from partcraft_lit.metrics.token_space import silhouette, tsne


def clusters(count=8, spread=0.05, seed=0):
    """Three groups around three orthogonal directions in eight dimensions."""
    generator = torch.Generator().manual_seed(seed)
    groups = torch.arange(3).repeat_interleave(count)
    return torch.eye(8)[groups] + spread * torch.randn(3 * count, 8, generator=generator), groups


def test_silhouette_by_hand():
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    assert silhouette(vectors, torch.tensor([0, 0, 1, 1])) == pytest.approx(1.0)
    assert silhouette(vectors, torch.tensor([0, 1, 0, 1])) == pytest.approx(-0.5)
    assert silhouette(vectors, torch.tensor([0, 0, 0, 1])) == pytest.approx((1 + 1 + 1) * 0 + _alone(), abs=1e-9)
    assert math.isnan(silhouette(vectors, torch.zeros(4)))


def _alone() -> float:
    """Vectors 0 and 1: inside (0 + 1) / 2, other 1 -> 0.5; vector 2: inside 1, other 0 -> -1; vector 3 is alone."""
    return (0.5 + 0.5 - 1.0 + 0.0) / 4


def test_silhouette_does_not_depend_on_length_or_order():
    vectors, groups = clusters()
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(1))
    value = silhouette(vectors, groups)
    assert value > 0.8
    assert silhouette((vectors * torch.linspace(1, 9, 24)[:, None])[order], groups[order]) == pytest.approx(value)


def by_definition(vectors, groups):
    """Rousseeuw's formula, vector by vector."""
    unit = torch.nn.functional.normalize(vectors.double(), dim=1)
    values = []
    for index, group in enumerate(groups):
        distance = 1 - unit @ unit[index]
        mean = {int(g): distance[groups == g].sum() / (groups == g).sum() for g in groups.unique()}
        own = int((groups == group).sum())
        inside = distance[groups == group].sum() / max(own - 1, 1)
        nearest = min(value for other, value in mean.items() if other != int(group))
        values.append(float((nearest - inside) / max(nearest, inside)) if own > 1 else 0.0)
    return sum(values) / len(values)


def test_silhouette_is_the_formula_to_float_precision():
    vectors, groups = clusters(spread=0.8)
    groups[0] = 7  # alone
    assert silhouette(vectors, groups) == pytest.approx(by_definition(vectors, groups), abs=1e-12)
    assert silhouette(vectors, torch.arange(24)) == 0.0


def test_tsne_keeps_groups_together_and_leaves_nothing_to_chance():
    vectors, groups = clusters()
    places = tsne(vectors, perplexity=5, steps=250)
    assert torch.equal(places, tsne(vectors, perplexity=5, steps=250)) and places.isfinite().all()
    apart = torch.cdist(places, places).fill_diagonal_(torch.inf)
    assert torch.equal(groups[apart.argmin(dim=1)], groups)
    assert tsne(torch.ones(5, 8)).isfinite().all()
    with pytest.raises(ValueError, match="at least four vectors, got 3"):
        tsne(vectors[:3])
