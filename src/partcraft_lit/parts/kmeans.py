"""Spherical k-means over faiss, on GPUs where faiss has any."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.randomness import numpy_generator, torch_generator

#: Two directions nearer than this (1 - cosine) are one: below it, float32 products are noise.
SAME = 1e-6
#: What a nat of mutual information between cluster and group costs, in mean cosine.
GROUP_COST = 0.1
#: Vectors that are looked at together.
_ROWS = 65_536


def cosine_kmeans(
    x: Tensor,
    k: int,
    *,
    nredo: int = 5,
    niter: int = 30,
    seed: int = 0,
    max_points: int = 200_000,
    groups: Tensor | None = None,
    greedy: bool = False,
) -> tuple[Tensor, Tensor]:
    """Clusters directions: unit centroids, assignment by largest cosine, best of ``nredo`` runs.

    Each run starts from its own k-means++ draw. Rows of zeros have no direction: they do not take part in the fit.

    Args:
        x: (N, D) float32; need not be normalised.
        k: number of clusters; fewer where ``x`` has fewer distinct directions.
        nredo: runs; the one with the largest mean cosine is kept.
        niter: steps of each run.
        seed: everything random depends on it alone.
        max_points: at most so many rows, drawn evenly, are fitted; all are labelled.
        groups: (N,) int64, for instance the image of each row: clusters should occur in every group, as parts of
            an object are. Then as many runs again start from rows of one group each, and the run is kept whose mean
            cosine less ``GROUP_COST`` times the mutual information of cluster and group is largest. Without it, two
            kinds of group may be told apart at the price of two clusters that every group shows.
        greedy: greedy k-means++, for many clusters: plain k-means++ leaves some of them without a start, and merges two
            that look alike.

    Returns:
        centroids (k', D) of length 1 with k' <= k, every one with at least one member, and labels (N,) int64, which are
        the nearest centroids.

    Raises:
        ValueError: if ``x`` is no finite (N, D) matrix with a row that is not zero, or ``k`` < 1.

    Source: faiss ``Clustering`` with ``spherical``. Its own defaults would look at 256 points per centroid only, leave
    the input as long as it is, and start from random points.
    """
    from sklearn.metrics import mutual_info_score  # slow to import, like faiss

    _check(x, k)
    x = x.detach().float().cpu()
    directed = torch.cat([F.normalize(chunk, dim=1).norm(dim=1) > 0.5 for chunk in x.split(_ROWS)])
    kept = _subsample(directed.nonzero()[:, 0], max_points, seed)
    if len(kept) == 0:
        raise ValueError("x holds only zero vectors, which have no direction to cluster by.")
    points = x[kept]  # the only copy that is made: x may be the largest thing in memory
    F.normalize(points, dim=1, out=points)
    best: Tensor | None = None
    best_value = -math.inf
    for start in _starts(points, k, nredo, seed, None if groups is None else groups[kept], greedy):
        centroids = F.normalize(_lloyd(points, start, niter), dim=1)
        value = float(_similarity(points, centroids).double().mean())
        if groups is not None:
            value -= GROUP_COST * float(mutual_info_score(nearest(points, centroids).numpy(), groups[kept].numpy()))
        if value > best_value:
            best, best_value = centroids, value
    assert best is not None
    return assign(x.split(_ROWS), best)


def cluster_codes(
    x: Tensor, k: int, *, nredo: int = 5, niter: int = 30, seed: int = 0, max_points: int = 200_000
) -> tuple[Tensor, Tensor]:
    """Codes of one part: greedy k-means++ of its mean-centred features.

    All images of a part share most of its features, so cosines between them are near 1 and what they differ in hardly
    counts. Clusters are found after the mean direction is subtracted; codes are the mean directions of their members.

    Args:
        x, k, nredo, niter, seed, max_points: as in ``cosine_kmeans``. Where centred features have fewer than ``k``
            directions, they are clustered without centring.

    Returns:
        As ``cosine_kmeans``: labels are the nearest centroids of the features without centring, as they are read later.

    Source: PartCraft's third tier. Differs: centring, greedy starts (``benchmarks/codes.py`` compares their purity).
    """
    fit = partial(cosine_kmeans, k=k, nredo=nredo, niter=niter, seed=seed, max_points=max_points, greedy=True)
    directions = F.normalize(x.detach().float().cpu(), dim=1)
    directed = directions.norm(dim=1) > 0.5
    if bool(directed.any()):
        centred = directions - directions[directed].mean(dim=0)
        apart = directed & (centred.square().sum(dim=1) > 2 * SAME)
        if bool(apart.any()):
            found, labels = fit(centred * apart[:, None])
            if len(found) == k:
                sums = torch.zeros(k, x.shape[1]).index_add_(0, labels[apart], directions[apart])
                return assign(directions.split(_ROWS), F.normalize(sums, dim=1))
    return fit(x)


def nearest(x: Tensor, centroids: Tensor) -> Tensor:
    """(..., D) vectors and (k, D) unit centroids -> (...,) index of the centroid with the largest cosine.

    A centroid of zeros, which stands for a code that nothing has, is never the nearest. Without vectors there may be no
    centroids either.
    """
    if x.numel() == 0:
        return torch.empty(x.shape[:-1], dtype=torch.long)
    similarity = x @ centroids.T
    dead = centroids.abs().sum(dim=1) == 0
    return similarity.masked_fill(dead, -math.inf).argmax(dim=-1)


def assign(pieces: Iterable[Tensor], centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Labels vectors that come in pieces, for instance more than a fit could hold.

    Args:
        pieces: (n, D) each, not all empty; need not be normalised.
        centroids: (k, D) of length 1.

    Returns:
        the centroids that are the nearest of any vector, and labels (N,) int64 that count these.
    """
    labels = torch.cat([nearest(F.normalize(piece.float(), dim=1), centroids) for piece in pieces])
    return _without_dead(centroids, labels)


def spread(items: Tensor, most: int) -> Tensor:
    """At most so many of the items, spread evenly over them; all, if they are no more."""
    return items if len(items) <= most else items[torch.arange(most) * len(items) // most]


def _check(x: Tensor, k: int) -> None:
    if x.ndim != 2 or len(x) == 0:
        raise ValueError(f"x must be (N, D) with N > 0, got {tuple(x.shape)}.")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    if not all_finite(x):
        raise ValueError("x holds NaN or infinite values; the features of some image are broken.")


def all_finite(x: Tensor) -> bool:
    """Whether all of (N, D) is finite; in pieces, since torch allocates as much memory again for the check."""
    return all(bool(torch.isfinite(chunk).all()) for chunk in x.split(_ROWS))


def _subsample(points: Tensor, most: int, seed: int) -> Tensor:
    if len(points) <= most:
        return points
    kept = torch.randperm(len(points), generator=torch_generator(seed, "kmeans", "subsample"))[:most]
    return points[kept.sort().values]


def _starts(points: Tensor, k: int, nredo: int, seed: int, groups: Tensor | None, greedy: bool) -> Iterator[Tensor]:
    candidates = 2 + int(math.log(k)) if greedy else 1
    for redo in range(nredo):
        yield _plus_plus(points, k, seed, redo, candidates)
    if groups is None:
        return
    names, sizes = groups.unique(return_counts=True)
    large = names[sizes >= 4 * k]
    if len(large) == 0:
        return
    for redo in range(nredo):
        chosen = large[int(numpy_generator(seed, "kmeans", "group", redo).integers(len(large)))]
        yield _plus_plus(points[groups == chosen], k, seed, nredo + redo, candidates)


def _plus_plus(points: Tensor, k: int, seed: int, redo: int, candidates: int) -> Tensor:
    """Draws k distinct starts, fewer if there are not k distinct directions. Of some candidates, drawn with probability
    proportional to the distance from the starts before, the one that lowers the potential most is taken.

    Source: Arthur and Vassilvitskii, "k-means++", 2007, with 1 - cosine, which is half the squared distance. Several
    candidates, 2 + ln k, are the greedy variant, as in scikit-learn's ``kmeans_plusplus``.
    """
    rng = numpy_generator(seed, "kmeans", "start", redo)
    chosen = [int(rng.integers(len(points)))]
    distance = 1 - points @ points[chosen[0]]
    while len(chosen) < k:
        weights = torch.where(distance > SAME, distance, 0).double()
        total = weights.cumsum(0)
        if total[-1] <= 0:
            break
        draws = torch.from_numpy(rng.random(candidates)) * total[-1]
        drawn = torch.searchsorted(total, draws, right=True).clamp_max(len(points) - 1)
        distances = torch.minimum(distance[:, None], 1 - points @ points[drawn].T)  # (N, candidates)
        best = int(distances.sum(dim=0).argmin())
        chosen.append(int(drawn[best]))
        distance = distances[:, best]
    return points[chosen]


def _lloyd(points: Tensor, start: Tensor, niter: int) -> Tensor:
    """faiss iterations from given starts; empty clusters are refilled by splitting large ones, as faiss does."""
    import faiss  # here, because importing it takes half a second that --help need not wait for

    kmeans = faiss.Kmeans(
        points.shape[1],
        len(start),
        niter=niter,
        spherical=True,
        gpu=faiss.get_num_gpus(),
        min_points_per_centroid=1,
        max_points_per_centroid=len(points) + 1,
    )
    kmeans.train(points.numpy(), init_centroids=start.numpy())
    return torch.tensor(kmeans.centroids)


def _similarity(points: Tensor, centroids: Tensor) -> Tensor:
    return torch.cat([(chunk @ centroids.T).amax(dim=1) for chunk in points.split(_ROWS)])


def _without_dead(centroids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    members = torch.bincount(labels, minlength=len(centroids))
    alive = members > 0
    renumbered = alive.long().cumsum(0) - 1
    return centroids[alive], renumbered[labels]
