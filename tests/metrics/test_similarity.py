"""Mean pairwise cosine: by hand, against all pairs, in two processes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.metrics.similarity import ImageSimilarity


class Two:
    id, dim = "two", 2

    def __call__(self, images):
        raise AssertionError("features are given")


def test_by_hand():
    metric = ImageSimilarity(Two())
    metric.update(torch.tensor([[3.0, 0.0], [0.0, 0.5]]), real=True)
    metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-2.0, 0.0], [4.0, 3.0]]), real=False)
    found = metric.compute()
    assert float(found["value"]) == pytest.approx((1 + 1 - 1 + 0.8 + 0.6) / 8)
    assert float(found["real"]) == pytest.approx(0)


def filled(features, real, generated, batch_size=64):
    metric = ImageSimilarity(features, name="dino")
    for images, is_real in ((real, True), (generated, False)):
        for batch in images.split(batch_size):
            metric.update(batch, real=is_real)
    return metric


def test_all_pairs_in_any_order_and_batch(tiny_features, pictures):
    real, generated = pictures(7, 1), pictures(9, 2)
    a, b = (F.normalize(tiny_features(images).double(), dim=1) for images in (real, generated))
    found = filled(tiny_features, real, generated).compute()
    assert_close(found["value"], (a @ b.T).mean())
    among = a @ a.T
    assert_close(found["real"], (among.sum() - among.trace()) / 42)
    assert_close(filled(tiny_features, real.flip(0), generated, 2).compute(), found)


def test_two_processes_agree_with_one(tiny_features, pictures, two_processes):
    real, generated = pictures(7, 1), pictures(9, 2)
    expected = filled(tiny_features, real, generated).compute()

    def work(rank):  # the second process has no real picture at all
        return filled(tiny_features, real[:0] if rank else real, generated[rank::2], 3).compute()

    for found in two_processes(work):
        assert_close(found, expected)


def test_a_set_is_as_like_itself_as_can_be(tiny_features, pictures):
    images = pictures(1).expand(4, -1, -1, -1)
    found = filled(tiny_features, images, images)
    assert found.key == "dino@tiny"
    assert_close(found.compute()["value"], torch.tensor(1.0, dtype=torch.float64))
    assert_close(found.compute()["real"], torch.tensor(1.0, dtype=torch.float64))


def test_empty_sides_give_no_number(tiny_features, pictures):
    assert filled(tiny_features, pictures(1), pictures(0)).compute()["value"].isnan()
    assert filled(tiny_features, pictures(1), pictures(1)).compute()["real"].isnan()
