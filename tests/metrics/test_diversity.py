"""Diversity: copies, orthogonal pictures, and laws."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.metrics.diversity import Diversity, vendi_score


class Plane:
    id, dim = "plane", 3

    def __call__(self, images):
        raise AssertionError("features are given")


def test_vendi_counts_different_pictures():
    assert float(vendi_score(torch.ones(5, 3))) == pytest.approx(1)
    assert float(vendi_score(torch.eye(4) * torch.tensor([1.0, 2, 3, 4]))) == pytest.approx(4)
    assert float(vendi_score(torch.eye(2).repeat(3, 1))) == pytest.approx(2)
    # Eigenvalues 1/3 and 2/3: two copies and another one.
    uneven = torch.exp(torch.special.entr(torch.tensor([1 / 3, 2 / 3])).sum())
    assert float(vendi_score(torch.tensor([[1.0, 0], [1, 0], [0, 1]]))) == pytest.approx(float(uneven))


def test_prompts_are_averaged_and_lone_pictures_left_out():
    metric = Diversity(Plane())
    metric.update(torch.eye(3), [0, 0, 7])  # orthogonal: distance 1; and one alone
    metric.update(torch.tensor([[2.0, 0, 0], [3.0, 0, 0]]), torch.tensor([4, 4]))  # copies: distance 0
    found = {key: float(value) for key, value in metric.compute().items()}
    assert found == {"value": pytest.approx(0.5), "vendi": pytest.approx(1.5), "prompts": 2}
    assert metric.key == "diversity@plane"


def test_order_batches_and_processes_do_not_matter(tiny_features, pictures, two_processes):
    images, prompts = pictures(11), torch.arange(11) % 3

    def work(rank, step=2, size=2):
        metric = Diversity(tiny_features)
        for piece in torch.arange(rank, 11, step).split(size):
            metric.update(images[piece], prompts[piece])
        return metric.compute()

    expected = work(0, 1, 11)
    assert_close(work(0, 1, 4), expected)
    for found in two_processes(work):
        assert_close(found, expected)


def test_nothing_to_compare_gives_no_number(tiny_features, pictures):
    metric = Diversity(tiny_features)
    metric.update(pictures(2), [0, 1])
    assert metric.compute()["value"].isnan() and metric.compute()["vendi"].isnan()
    with pytest.raises(ValueError, match=r"2 pictures, \(3,\)"):
        metric.update(pictures(2), [0, 1, 2])
