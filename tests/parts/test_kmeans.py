from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.parts.kmeans import cluster_codes, cosine_kmeans, nearest


def blobs(per_blob: int = 60, dim: int = 8, count: int = 4, spread: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Well separated directions of very different lengths."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(dim)[:count]
    truth = torch.arange(count).repeat_interleave(per_blob)
    points = centres[truth] + spread * torch.randn(len(truth), dim, generator=generator)
    return points * torch.rand(len(truth), 1, generator=generator).add(0.01).mul(100), truth


def same_partition(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool(((first[:, None] == first[None]) == (second[:, None] == second[None])).all())


def test_finds_directions_whatever_their_length():
    points, truth = blobs()
    centroids, labels = cosine_kmeans(points, 4, seed=3)
    assert same_partition(labels, truth)
    assert_close(centroids.norm(dim=1), torch.ones(4))


def test_labels_are_the_nearest_centroids_by_an_independent_count():
    points, _ = blobs(spread=0.6)
    centroids, labels = cosine_kmeans(points, 7, seed=1)
    a, b = points.double().numpy(), centroids.double().numpy()
    cosine = (a @ b.T) / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    assert (cosine.argmax(axis=1) == labels.numpy()).all()


def test_repeats_under_a_seed_and_differs_under_another():
    points, _ = blobs(spread=1.0)
    first, second = cosine_kmeans(points, 9, seed=5), cosine_kmeans(points, 9, seed=5)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    other = cosine_kmeans(points, 9, seed=6, nredo=1)
    assert not torch.equal(first[0], other[0])


def test_scaling_rows_changes_nothing():
    points, _ = blobs(spread=0.6)
    scale = 2.0 ** torch.randint(-4, 4, (len(points), 1), generator=torch.Generator().manual_seed(1))
    assert torch.equal(cosine_kmeans(points, 6)[1], cosine_kmeans(points * scale, 6)[1])


def test_more_runs_are_never_worse():
    points, _ = blobs(spread=1.0)

    def quality(nredo: int) -> float:
        centroids, labels = cosine_kmeans(points, 12, nredo=nredo, niter=5)
        return float((F.normalize(points, dim=1) * centroids[labels]).sum(dim=1).mean())

    assert quality(8) >= quality(1)


@pytest.mark.parametrize("k", [1, 2, 5, 40])
def test_no_cluster_is_dead(k):
    generator = torch.Generator().manual_seed(2)
    points = torch.randn(40, 3, generator=generator)
    centroids, labels = cosine_kmeans(points, k)
    assert len(centroids) == k
    assert set(labels.tolist()) == set(range(k))


def test_fewer_points_than_clusters_lower_k():
    centroids, labels = cosine_kmeans(torch.eye(3), 10)
    assert len(centroids) == 3
    assert sorted(labels.tolist()) == [0, 1, 2]


def test_duplicates_do_not_take_clusters():
    points = torch.eye(4)[torch.arange(200) % 3] * 7
    centroids, labels = cosine_kmeans(points, 8)
    assert len(centroids) == 3
    assert same_partition(labels, torch.arange(200) % 3)


def test_zero_rows_take_no_part():
    points = torch.cat([torch.zeros(50, 4), torch.eye(4)[torch.arange(20) % 2]])
    centroids, labels = cosine_kmeans(points, 3)
    assert len(centroids) == 2
    assert bool(torch.isfinite(centroids).all())
    assert labels.shape == (70,)


def test_sees_more_than_faiss_would_by_default():
    """faiss would look at 256 points per centroid, 512 of these 20,000, and miss the rare group under most seeds."""
    rare = torch.tensor([[0.0, 0.0, 1.0]]).repeat(12, 1)
    common = torch.tensor([[1.0, 0.0, 0.0]]).repeat(19_988, 1)
    _, labels = cosine_kmeans(torch.cat([common, rare]), 2)
    assert labels[0] != labels[-1]
    assert int((labels == labels[-1]).sum()) == 12


def test_max_points_bounds_the_fit_but_labels_all():
    points, truth = blobs(per_blob=500)
    _, labels = cosine_kmeans(points, 4, max_points=100)
    assert same_partition(labels[::25], truth[::25])
    assert len(labels) == 2000


def test_nearest_passes_over_zero_rows():
    centroids = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    assert nearest(torch.tensor([[-1.0, 0.5]]), centroids).tolist() == [1]


@pytest.mark.parametrize(
    "x, k, message",
    [
        (torch.zeros(0, 3), 2, "must be"),
        (torch.zeros(4), 2, "must be"),
        (torch.ones(4, 2), 0, "k must be at least 1"),
        (torch.tensor([[1.0, float("nan")]]), 1, "NaN"),
        (torch.zeros(4, 2), 2, "zero vectors"),
    ],
)
def test_bad_input_is_named(x, k, message):
    with pytest.raises(ValueError, match=message):
        cosine_kmeans(x, k)


def test_groups_ask_for_clusters_that_every_group_shows():
    # Two kinds of image, 40 degrees apart, each with two parts 36 degrees apart: the kinds are the tighter clusters.
    def directions(degrees: list[float]) -> torch.Tensor:
        angle = torch.tensor(degrees).deg2rad()
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    # x and y hold the kind of image, z and w the part
    kind, part = directions([0.0, 40.0]), directions([0.0, 36.0])
    rows, groups, parts = [], [], []
    for image in range(20):
        for which in (0, 1):
            rows += [torch.cat([kind[image % 2], part[which]])] * 10
            groups += [image] * 10
            parts += [which] * 10
    x, group, truth = torch.stack(rows), torch.tensor(groups), torch.tensor(parts)
    _, plain = cosine_kmeans(x, 2, seed=1)
    _, grouped = cosine_kmeans(x, 2, seed=1, groups=group)
    assert mutual_info_score(plain, group % 2) == pytest.approx(math.log(2))
    assert mutual_info_score(grouped, truth) == pytest.approx(math.log(2))


def test_the_best_of_several_candidates_finds_many_clusters_more_often():
    points, truth = blobs(per_blob=20, dim=24, count=20, spread=0.08)
    found = {
        greedy: sum(
            same_partition(cosine_kmeans(points, 20, nredo=1, seed=seed, greedy=greedy)[1], truth) for seed in range(20)
        )
        for greedy in (False, True)
    }
    assert found[True] >= 2 * max(found[False], 1), found


def alike(per_look: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Four looks, two of which differ in little, and much more that all of them share."""
    generator = torch.Generator().manual_seed(0)
    looks = torch.tensor([[0.3, 0, 0], [0, 0.3, 0], [-0.02, -0.02, 0.06], [-0.02, -0.02, -0.06]])
    truth = torch.arange(4).repeat_interleave(per_look)
    points = looks[truth] + 0.002 * torch.randn(len(truth), 3, generator=generator)
    return torch.cat([points, torch.ones(len(truth), 1)], dim=1), truth


def test_codes_are_mean_directions_and_labels_the_nearest_of_them():
    points, truth = alike()
    lengths = torch.linspace(0.5, 2, len(points))[:, None]
    centroids, labels = cluster_codes(points * lengths, 4, seed=1)
    assert same_partition(labels, truth)
    for code in range(4):
        mean = F.normalize(F.normalize(points[labels == code], dim=1).mean(dim=0), dim=0)
        assert_close(centroids[code], mean, rtol=1e-5, atol=1e-5)
    assert torch.equal(labels, nearest(points, centroids))


def test_images_that_are_all_the_same_have_one_code():
    noise = 1e-8 * torch.randn(9, 5, generator=torch.Generator().manual_seed(0))
    centroids, labels = cluster_codes(torch.ones(9, 5) + noise, 3)
    assert centroids.shape == (1, 5) and not labels.any()


def test_differences_along_one_line_are_clustered_as_features():
    """Seen from the middle they have two directions, and there are three looks."""
    points = torch.tensor([[1.0, 0.0], [1.0, 0.4], [1.0, 0.9]]).repeat(10, 1)
    centroids, labels = cluster_codes(points, 3)
    assert len(centroids) == 3 and same_partition(labels, torch.arange(3).repeat(10))
