"""Kernel inception distance; torchmetrics' has only the error between random subsets, not the jackknife's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.metrics.features import FeatureMetric, ImageFeatures

_BLOCK = 1024


class KernelDistance(FeatureMetric):
    """Unbiased squared maximum mean discrepancy under the kernel (x.y / D + 1)^3, with its standard error.

    Zero on average for two samples of one distribution, however small, so it may be slightly negative; that is why it
    stands beside FID below some thousands of images. Low is good. Papers print it times 1000.

    By default all pairs are used, once, and the error is the jackknife's. With ``subsets`` it is the published
    estimate: the mean over random subsets, and the error is the deviation between them over the root of their number,
    which ignores the images that no subset drew.

    Features of all images are kept, in float32. The result does not depend on their order or their spread over
    processes.

    Args:
        features: describes an image.
        subsets: None for all pairs, or how many subsets.
        subset_size: images of each kind in a subset.
        seed: of the subsets.

    Source: Bińkowski et al. (arXiv 1801.01401), section 4. Differs: all pairs by default.
    """

    higher_is_better = False

    real: list[Tensor]
    generated: list[Tensor]

    def __init__(
        self,
        features: ImageFeatures,
        subsets: int | None = None,
        subset_size: int = 1000,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(features, **kwargs)
        if subset_size < 3 or (subsets is not None and subsets < 2):
            raise ValueError(
                f"subsets must be None or at least 2, subset_size at least 3; got {subsets}, {subset_size}."
            )
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed
        self.name = "kid" if subsets is None else f"kid-{subsets}x{subset_size}"
        self.add_state("real", default=[], dist_reduce_fx="cat")
        self.add_state("generated", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Adds images, or their (B, D) features, to the real or to the generated ones."""
        (self.real if real else self.generated).append(self.describe(images).float())

    def compute(self) -> dict[str, Tensor]:
        """``value`` and ``standard_error``, float64.

        Raises:
            ValueError: with fewer than three images on either side, or than a subset has.
        """
        real, generated = self._sorted("real"), self._sorted("generated")
        if self.subsets is None:
            value, error = kernel_distance(real, generated)
            return {"value": value, "standard_error": error}
        values = []
        for index in range(self.subsets):
            draws = [
                side[torch.randperm(len(side), generator=torch_generator(self.seed, "kid", index, which))][
                    : self.subset_size
                ]
                for which, side in (("real", real), ("generated", generated))
            ]
            values.append(kernel_distance(*draws)[0])
        found = torch.stack(values)
        return {"value": found.mean(), "standard_error": found.std() / self.subsets**0.5}

    def _sorted(self, side: str) -> Tensor:
        state = getattr(self, side)
        found = dim_zero_cat(state) if len(state) else torch.zeros(0, self.features.dim)
        least = 3 if self.subsets is None else self.subset_size
        if len(found) < least:
            raise ValueError(f"A kernel distance needs at least {least} {side} images, got {len(found)}.")
        # An order of the images' own, so that subsets do not depend on how they came.
        return found[found.double().sum(dim=1).argsort()]


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
