"""Copies are found, new images are not."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.metrics.features import PixelFeatures
from partcraft_lit.metrics.memorisation import Memorisation, nearest


class Line:
    id, dim = "line", 1

    def __call__(self, images):
        raise AssertionError("features are given")


def filled(features, real, generated, batch_size=64, **kwargs):
    metric = Memorisation(features, **kwargs)
    for images, is_real in ((real, True), (generated, False)):
        for batch in images.split(batch_size):
            metric.update(batch, real=is_real)
    return metric


def test_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0], [7.0]])  # nearest neighbours at 1, 1, 2 and 4
    generated = torch.tensor([[0.5], [2.0], [8.5], [3.0]])  # at 0.5, 1, 1.5 and 0
    metric = filled(Line(), real, generated, quantile=0.5, cosine=False)
    found = {key: float(value) for key, value in metric.compute().items()}
    assert found == {"value": 1.0, "threshold": 1.5, "distance": 0.75, "real_distance": 1.5}
    assert float(filled(Line(), real, generated, quantile=0.1, cosine=False).compute()["value"]) == 0.75
    distances, places = nearest(generated, real)
    assert distances.tolist() == [0.5, 1, 1.5, 0]
    assert places.tolist()[2:] == [3, 2]


def test_nearest_against_all_pairs_in_blocks(monkeypatch):
    monkeypatch.setattr("partcraft_lit.metrics.memorisation._BLOCK", 4)
    generator = torch.Generator().manual_seed(0)
    points, others = (torch.randn(count, 5, dtype=torch.float64, generator=generator) for count in (11, 9))
    distances, places = nearest(points, others)
    expected = torch.cdist(points, others).min(dim=1)
    assert_close(distances, expected.values)
    assert torch.equal(places, expected.indices)
    among, _ = nearest(points, points, itself=True)
    assert_close(among, (torch.cdist(points, points) + torch.eye(11) * 99).min(dim=1).values)


def test_new_pictures_of_the_same_kind_count_at_about_the_quantile():
    values = torch.randn(2000, 1, 3, generator=torch.Generator().manual_seed(0))[:, 0]

    class Cloud(Line):
        dim = 3

    found = filled(Cloud(), values[:1000], values[1000:], cosine=False).compute()
    assert 0.02 < float(found["value"]) < 0.09


def test_copies_are_found_in_pixels_and_in_features(tiny_features, pictures):
    real = pictures(30)
    for features, cosine in ((PixelFeatures(4), False), (tiny_features, True)):
        found = filled(features, real, torch.cat([real[:5], pictures(5, 9)]), cosine=cosine).compute()
        assert 0.5 <= float(found["value"]) < 1
    nudged = (real[:5].float() * 0.98).to(torch.uint8)  # a copy that was darkened a little
    assert float(filled(tiny_features, real, nudged).compute()["value"]) == 1


def test_order_batches_and_processes_do_not_matter(tiny_features, pictures, two_processes):
    real, generated = pictures(12, 1), pictures(9, 2)
    expected = filled(tiny_features, real, generated).compute()
    assert_close(filled(tiny_features, real.flip(0), generated.flip(0), 2).compute(), expected)

    def work(rank):
        return filled(tiny_features, real[rank::2], generated[:7] if rank else generated[7:], 3).compute()

    for found in two_processes(work):
        assert_close(found, expected)


def test_mistakes_are_named(tiny_features, pictures):
    with pytest.raises(ValueError, match="at least 2 real images, got 1"):
        filled(tiny_features, pictures(1), pictures(3)).compute()
    with pytest.raises(ValueError, match="quantile must lie between 0 and 1, got 5"):
        Memorisation(tiny_features, quantile=5)
