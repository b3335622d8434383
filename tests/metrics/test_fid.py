"""FID: closed forms, torchmetrics' arithmetic on the same features, and laws."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torchmetrics.image.fid import FrechetInceptionDistance

from partcraft_lit.metrics.fid import FrechetDistance, frechet_distance


def filled(features, real, generated, batch_size=64) -> FrechetDistance:
    metric = FrechetDistance(features)
    for images, is_real in ((real, True), (generated, False)):
        for batch in images.split(batch_size):
            metric.update(batch, real=is_real)
    return metric


def test_diagonal_gaussians_have_a_closed_form():
    mean_a, mean_b = torch.tensor([1.0, 2.0, 0.0]), torch.tensor([0.0, 2.0, 2.0])
    variance_a, variance_b = torch.tensor([4.0, 1.0, 0.0]), torch.tensor([1.0, 9.0, 0.0])
    # |1, 0, -2|^2 + (2 - 1)^2 + (1 - 3)^2 + 0
    found = frechet_distance(mean_a, variance_a.diag(), mean_b, variance_b.diag())
    assert_close(found, torch.tensor(10.0, dtype=torch.float64))


def test_commuting_covariances_in_any_basis():
    basis, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    a, b = torch.arange(8).double(), torch.arange(8).double().flip(0)
    zero = torch.zeros(8)
    found = frechet_distance(zero, basis @ a.diag() @ basis.T, zero, basis @ b.diag() @ basis.T)
    assert_close(found, (a.sqrt() - b.sqrt()).square().sum())


def test_as_torchmetrics_on_the_same_features(tiny_features, pictures):
    class Network(nn.Module):
        num_features = 6

        def forward(self, images):
            return tiny_features(images)

    real, generated = pictures(40, 1), pictures(30, 2) // 2
    theirs = FrechetInceptionDistance(feature=Network(), input_img_size=(3, 6, 5))
    theirs.update(real, real=True)
    theirs.update(generated, real=False)
    ours = filled(tiny_features, real, generated).compute()
    assert ours.dtype == torch.float64
    assert float(ours) == pytest.approx(float(theirs.compute()), rel=1e-4)


def test_a_set_is_at_no_distance_of_itself_even_when_it_is_small(tiny_features, pictures):
    images = pictures(4)  # fewer than features: singular covariances
    assert 0 <= float(filled(tiny_features, images, images).compute()) < 1e-12


def test_order_batches_and_sides_do_not_matter(tiny_features, pictures):
    real, generated = pictures(20, 1), pictures(25, 2)
    whole = filled(tiny_features, real, generated).compute()
    order = torch.randperm(25, generator=torch.Generator().manual_seed(0))
    assert_close(filled(tiny_features, real, generated[order], batch_size=3).compute(), whole)
    assert_close(filled(tiny_features, generated, real).compute(), whole)
    assert float(whole) > 1e-4


def test_a_mean_far_from_zero_costs_no_accuracy(tiny_features):
    values = torch.randn(500, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    near = filled(tiny_features, values[:250], values[250:]).compute()
    far = filled(tiny_features, values[:250] + 1000, values[250:] + 1000).compute()
    assert_close(far, near, atol=1e-6, rtol=0)


def test_two_processes_agree_with_one(tiny_features, pictures, two_processes):
    real, generated = pictures(21, 1), pictures(16, 2)
    expected = filled(tiny_features, real, generated).compute()

    def work(rank):
        return filled(tiny_features, real[rank::2], generated[:5] if rank else generated[5:], 4).compute()

    for found in two_processes(work):
        assert_close(found, expected)


def test_reset_forgets_and_may_keep_the_real_ones(tiny_features, pictures):
    metric = FrechetDistance(tiny_features, keep_real=True)
    metric.update(pictures(9, 1), real=True)
    metric.update(pictures(9, 2), real=False)
    first = metric.compute()
    metric.reset()
    assert (int(metric.real_count), int(metric.generated_count)) == (9, 0)
    metric.update(pictures(9, 2), real=False)
    assert_close(metric.compute(), first)
    plain = filled(tiny_features, pictures(9, 1), pictures(9, 2))
    plain.reset()
    assert int(plain.real_count) == 0


def test_copies_share_the_network(tiny_features, pictures):
    metric = FrechetDistance(tiny_features)
    copied = copy.deepcopy(metric)
    copied.update(pictures(3), real=True)
    assert copied.features is metric.features and int(metric.real_count) == 0


def test_too_few_pictures_are_an_error(tiny_features, pictures):
    metric = filled(tiny_features, pictures(5), pictures(1))
    with pytest.raises(ValueError, match="at least two generated images, got 1"):
        metric.compute()
