"""Fréchet inception distance."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from partcraft_lit.metrics.features import FeatureMetric, ImageFeatures

#: Below so many images FID's bias is as large as what it is to show; KID, which has none, belongs beside it.
KID_BELOW = 5000


class FrechetDistance(FeatureMetric):
    """Squared Fréchet distance between two sets of images, each taken as a Gaussian cloud of features.

    FID with the Inception network (``metrics.networks.inception``: ``fid@tf-299``), the same arithmetic with any other
    network; the key names it. Low is good.

    FID is biased: a finite sample of the very same distribution has a distance above zero that grows as the sample
    shrinks, and by an amount that differs between models. Compare equal numbers of images only, and below
    ``KID_BELOW`` images read :class:`~partcraft_lit.metrics.kid.KernelDistance` beside it.

    Only sums are kept, in float64, so memory does not grow with the number of images, and neither their order, nor
    the batch size, nor the number of processes matters.

    Args:
        features: describes an image.
        keep_real: real images survive ``reset``, for one reference and many models.

    Source: Heusel et al. (arXiv 1706.08500), eq. 6. Differs: the trace of the matrix root is taken from eigenvalues of
    a symmetric product, which cannot become complex and needs no offset where a covariance is singular.
    """

    higher_is_better = False
    name = "fid"

    real_sum: Tensor
    real_products: Tensor
    real_count: Tensor
    generated_sum: Tensor
    generated_products: Tensor
    generated_count: Tensor

    def __init__(self, features: ImageFeatures, keep_real: bool = False, **kwargs: Any) -> None:
        super().__init__(features, **kwargs)
        self.keep_real = keep_real
        for side in ("real", "generated"):
            self.add_state(f"{side}_sum", torch.zeros(features.dim, dtype=torch.float64), dist_reduce_fx="sum")
            products = torch.zeros(features.dim, features.dim, dtype=torch.float64)
            self.add_state(f"{side}_products", products, dist_reduce_fx="sum")
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool) -> None:
        """Adds images, or their (B, D) features, to the real or to the generated ones.

        Raises:
            ValueError: see :meth:`FeatureMetric.describe`.
        """
        vectors = self.describe(images)
        if real:
            self.real_sum += vectors.sum(dim=0)
            self.real_products += vectors.T @ vectors
            self.real_count += len(vectors)
        else:
            self.generated_sum += vectors.sum(dim=0)
            self.generated_products += vectors.T @ vectors
            self.generated_count += len(vectors)

    def compute(self) -> Tensor:
        """The distance, float64, at least 0.

        Raises:
            ValueError: with fewer than two images on either side.
        """
        real = _gaussian("real", self.real_sum, self.real_products, self.real_count)
        generated = _gaussian("generated", self.generated_sum, self.generated_products, self.generated_count)
        return frechet_distance(*real, *generated)

    def reset(self) -> None:
        kept = {name: getattr(self, name) for name in self._defaults if name.startswith("real_")}
        super().reset()
        if self.keep_real:
            for name, value in kept.items():
                setattr(self, name, value)


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> Tensor:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), float64, at least 0.

    (A B)^(1/2) has the trace of (R B R)^(1/2) with R = A^(1/2), which is symmetric and has no negative eigenvalue.

    Args:
        mean_a: (D,).
        covariance_a: (D, D) symmetric, positive semidefinite.
        mean_b: (D,).
        covariance_b: (D, D) likewise.
    """
    values, vectors = torch.linalg.eigh(covariance_a.double())
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ covariance_b.double() @ root).clamp_min(0).sqrt().sum()
    means = (mean_a.double() - mean_b.double()).square().sum()
    distance = means + covariance_a.double().trace() + covariance_b.double().trace() - 2 * cross
    return distance.clamp_min(0)  # rounding


def _gaussian(side: str, total: Tensor, products: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    if int(count) < 2:
        raise ValueError(f"A Fréchet distance needs at least two {side} images, got {int(count)}.")
    mean = total / count
    return mean, (products - count * torch.outer(mean, mean)) / (count - 1)
