"""Kernel inception distance; torchmetrics' has only the error between random subsets, not the jackknife's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from partcraft_lit.metrics.features import FeatureMetric, ImageFeatures

_BLOCK = 1024


class KernelDistance(FeatureMetric):
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, with its standard error.

    Zero on average for two samples of one distribution, however small, so it may be slightly negative; that is why it
    stands beside FID below some thousands of images. Low is good. Papers print it times 1000.

    Features of all images are kept, in float32. The result does not depend on their order or their spread over
    processes.

    Args:
        features: describes an image.

    Source: Bińkowski et al. (arXiv 1801.01401), section 4. Differs: all pairs are used, once, and the
    error is the jackknife's; published is the mean over random subsets and their deviation.
    """

    higher_is_better = False

    real: list[Tensor]
    generated: list[Tensor]

    name = "kid"

    def __init__(self, features: ImageFeatures, **kwargs: Any) -> None:
        super().__init__(features, **kwargs)
        self.add_state("real", default=[], dist_reduce_fx="cat")
        self.add_state("generated", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Adds images, or their (B, D) features, to the real or to the generated ones."""
        (self.real if real else self.generated).append(self.describe(images).float())

    def compute(self) -> dict[str, Tensor]:
        """``value`` and ``standard_error``, float64.

        Raises:
            ValueError: with fewer than three images on either side.
        """
        real, generated = self._sorted("real"), self._sorted("generated")
        value, error = kernel_distance(real, generated)
        return {"value": value, "standard_error": error}

    def _sorted(self, side: str) -> Tensor:
        state = getattr(self, side)
        vectors = dim_zero_cat(state) if len(state) else torch.zeros(0, self.features.dim)
        if len(vectors) < 3:
            raise ValueError(f"A kernel distance needs at least 3 {side} images, got {len(vectors)}.")
        # An order of the images' own, so that sums do not depend on how they came.
        return vectors[vectors.double().sum(dim=1).argsort()]


def kernel_distance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Unbiased squared MMD and its jackknife standard error.

    Args:
        a: (n, D), n at least 3.
        b: (m, D), m at least 3.

    Returns:
        Two float64 scalars.
    """
    n, m = len(a), len(b)
    within_a, within_b = (_row_sums(x, x) - _kernel(x, x) for x in (a, b))
    across_a, across_b = _row_sums(a, b), _row_sums(b, a)
    total_a, total_b, total_across = within_a.sum(), within_b.sum(), across_a.sum()
    mean_a, mean_b = total_a / (n * (n - 1)), total_b / (m * (m - 1))
    value = mean_a + mean_b - 2 * total_across / (n * m)
    # The statistic without one image, in closed form.
    without_a = (total_a - 2 * within_a) / ((n - 1) * (n - 2)) + mean_b - 2 * (total_across - across_a) / ((n - 1) * m)
    without_b = mean_a + (total_b - 2 * within_b) / ((m - 1) * (m - 2)) - 2 * (total_across - across_b) / (n * (m - 1))
    variance = sum((len(left) - 1) / len(left) * (left - left.mean()).square().sum() for left in (without_a, without_b))
    return value, torch.as_tensor(variance).sqrt()


def _kernel(a: Tensor, b: Tensor) -> Tensor:
    """Of rows with rows: (n, D), (n, D) -> (n,)."""
    return ((a.double() * b.double()).sum(dim=1) / a.shape[1] + 1) ** 3


def _row_sums(a: Tensor, b: Tensor) -> Tensor:
    """(n,) sums of the kernel of each row of ``a`` with all rows of ``b``, in blocks."""
    others = b.double().T
    return torch.cat([((rows.double() @ others / a.shape[1] + 1) ** 3).sum(dim=1) for rows in a.split(_BLOCK)])
