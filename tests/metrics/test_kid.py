"""KID: pairs by hand, torchmetrics' arithmetic on the same features, and laws."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torchmetrics.image.kid import KernelInceptionDistance

from partcraft_lit.metrics.kid import KernelDistance, kernel_distance


def filled(features, real, generated, batch_size=64) -> KernelDistance:
    metric = KernelDistance(features)
    for images, is_real in ((real, True), (generated, False)):
        for batch in images.split(batch_size):
            metric.update(batch, real=is_real)
    return metric


def pairwise(a: Tensor, b: Tensor) -> float:
    """The definition, pair by pair."""

    def kernel(x, y):
        return float((x @ y / len(x) + 1) ** 3)

    within = [
        sum(kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / (len(s) * (len(s) - 1))
        for s in (a, b)
    ]
    return sum(within) - 2 * sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))


def test_by_definition_with_the_jackknife_by_leaving_out():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(count, 3, dtype=torch.float64, generator=generator) for count in (5, 4))
    value, error = kernel_distance(a, b)
    assert float(value) == pytest.approx(pairwise(a, b))
    variance = 0.0
    for x, others in ((a, lambda rest: (rest, b)), (b, lambda rest: (a, rest))):
        left = torch.tensor([pairwise(*others(torch.cat([x[:i], x[i + 1 :]]))) for i in range(len(x))])
        variance += float((len(x) - 1) / len(x) * (left - left.mean()).square().sum())
    assert float(error) == pytest.approx(variance**0.5, rel=1e-4)


def test_as_torchmetrics_on_the_same_features(tiny_features, pictures):
    class Network(nn.Module):
        num_features = 6

        def forward(self, images):
            return tiny_features(images)

    real, generated = pictures(30, 1), pictures(30, 2) // 2
    theirs = KernelInceptionDistance(feature=Network(), subsets=2, subset_size=30)  # a subset is the whole
    theirs.update(real, real=True)
    theirs.update(generated, real=False)
    ours = filled(tiny_features, real, generated).compute()
    assert float(ours["value"]) == pytest.approx(float(theirs.compute()[0]), rel=1e-3)


def test_no_bias_and_an_honest_error_on_small_samples():
    generator = torch.Generator().manual_seed(0)
    found = [kernel_distance(*torch.randn(2, 20, 4, generator=generator)) for _ in range(200)]
    values, errors = (torch.stack(list(column)) for column in zip(*found, strict=True))
    assert abs(float(values.mean())) < 3 * float(values.std()) / 200**0.5
    # Under the null the first-order term vanishes, where the jackknife is known to be on the safe side.
    assert 0.8 < float(errors.mean() / values.std()) < 2


def test_order_batches_and_sides_do_not_matter(tiny_features, pictures):
    real, generated = pictures(20, 1), pictures(25, 2)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    whole = filled(tiny_features, real, generated).compute()
    assert_close(filled(tiny_features, real, generated[order], 3).compute(), whole)
    flipped = filled(tiny_features, generated, real).compute()
    assert_close(flipped, filled(tiny_features, real, generated).compute())


def test_two_processes_agree_with_one(tiny_features, pictures, two_processes):
    real, generated = pictures(21, 1), pictures(16, 2)
    expected = filled(tiny_features, real, generated).compute()

    def work(rank):
        parts = real[rank::2], generated[:5] if rank else generated[5:]
        return filled(tiny_features, *parts, 4).compute()

    for found in two_processes(work):
        assert_close(found, expected)


def test_keys_name_the_protocol(tiny_features):
    assert KernelDistance(tiny_features).key == "kid@tiny"


def test_too_few_pictures_are_an_error(tiny_features, pictures):
    with pytest.raises(ValueError, match="at least 3 generated images, got 2"):
        filled(tiny_features, pictures(5), pictures(2)).compute()
    with pytest.raises(ValueError, match="at least 3 real images, got 0"):
        KernelDistance(tiny_features).compute()
