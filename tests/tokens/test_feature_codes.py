from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.tokens.feature_codes import CodeFeatures, starting_codes
from partcraft_lit.tokens.mapper import TokenMapper


def features(*sizes, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tables = [torch.nn.functional.normalize(torch.randn(size, dim, generator=generator), dim=1) for size in sizes]
    return CodeFeatures(tuple(tables), tuple(sizes))


def test_distances_are_those_of_half_whitened_features():
    """An independent computation: x C^(-1/2) y, with C^(1/2) the root of the covariance, is the product of codes."""
    given = features(7, 9, 8)
    codes = torch.cat(starting_codes(given, width=16, std=0.3, seed=1)).double()
    rows = torch.cat(given.centroids).double()
    rows = rows - rows.mean(dim=0)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    products = rows @ vectors @ torch.diag(values.rsqrt()) @ vectors.T @ rows.T
    scale = 0.09 * products.numel() ** 0.5 * 16 / products.trace()
    assert_close(codes @ codes.T, products * scale, rtol=1e-4, atol=1e-5)
    assert codes.square().mean().sqrt() == pytest.approx(0.3)


def test_look_alikes_start_side_by_side():
    given = features(5, 6)
    given.centroids[1][2] = given.centroids[1][4] + 1e-4
    codes = starting_codes(given, width=8, std=1.0, seed=0)[1]
    distances = torch.cdist(codes, codes) + 10 * torch.eye(6)
    assert divmod(int(distances.argmin()), 6) == (2, 4)


def test_codes_that_come_later_do_not_move_the_others():
    given = features(5, 6)
    longer = CodeFeatures((given.centroids[0], torch.cat([given.centroids[1], torch.ones(2, 6)])), given.known)
    before, after = starting_codes(given, 8, 1.0, 0), starting_codes(longer, 8, 1.0, 0)
    assert_close(after[1][:6], before[1], rtol=0, atol=0)
    assert after[1].shape == (8, 8) and bool(after[1][6:].any())


def test_a_basis_turned_over_gives_the_same_codes():
    """The sign of a singular vector is arbitrary; features in another order must not decide it."""
    given = features(5, 6)
    order = torch.randperm(6)
    shuffled = CodeFeatures(tuple(table[:, order] for table in given.centroids), given.known)
    for one, other in zip(starting_codes(given, 8, 1.0, 0), starting_codes(shuffled, 8, 1.0, 0), strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("sizes", "dim", "width"), [((1,), 6, 4), ((40, 40), 12, 4), ((3, 0, 2), 6, 8)])
def test_few_codes_many_features_and_parts_without_codes(sizes, dim, width):
    given = features(*sizes, dim=dim)
    codes = starting_codes(given, width, 1.0, 0)
    assert [tuple(table.shape) for table in codes] == [(size, width) for size in sizes]
    assert all(bool(torch.isfinite(table).all()) for table in codes)


def test_the_mapper_starts_from_them_and_keeps_random_rows_where_there_are_none():
    given = features(3, 5)
    given.centroids[1][1] = 0.0  # a class that never shows the part
    mapper = TokenMapper(1, 5, (6, 10), features=given, seed=3)
    random = TokenMapper(1, 5, (6, 10), seed=3)
    expected = starting_codes(given, 16, 1.0, 3)
    assert_close(mapper.codes[0, :3], expected[0], rtol=0, atol=0)
    assert_close(mapper.codes[0, 3:], random.codes[0, 3:], rtol=0, atol=0)
    assert_close(mapper.codes[1, 1], random.codes[1, 1], rtol=0, atol=0)
    assert_close(mapper.codes[1, 2:], expected[1][2:], rtol=0, atol=0)
    assert mapper.codes.requires_grad
    for one, other in zip(mapper.network.parameters(), random.network.parameters(), strict=True):
        assert_close(one, other, rtol=0, atol=0)
