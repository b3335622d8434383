"""Likeness of two sets of pictures, by the cosine of their features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from partcraft_lit.metrics.features import FeatureMetric, ImageFeatures, unit


class ImageSimilarity(FeatureMetric):
    """Mean cosine of all pairs of a generated and a real picture: DINO and CLIP-I of DreamBooth. High is good.

    Take one metric per subject, as published, and average over subjects: pairs across subjects would count as unlike.

    Only sums of unit vectors are kept, so memory does not grow with the number of pictures.

    Args:
        features: describes a picture: ``ClipEncoder`` or ``DinoFeatures``.
        name: in the key; ``clip-i`` or ``dino``.

    Source: Ruiz et al., DreamBooth (arXiv 2208.12242), section 4.1.
    """

    higher_is_better = True

    real_sum: Tensor
    real_count: Tensor
    generated_sum: Tensor
    generated_count: Tensor

    def __init__(self, features: ImageFeatures, name: str = "similarity", **kwargs: Any) -> None:
        super().__init__(features, **kwargs)
        self.name = name
        for side in ("real", "generated"):
            self.add_state(f"{side}_sum", torch.zeros(features.dim, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool) -> None:
        """Adds pictures, or their (B, D) features, to the real or to the generated ones."""
        vectors = unit(self.describe(images))
        if real:
            self.real_sum += vectors.sum(dim=0)
            self.real_count += len(vectors)
        else:
            self.generated_sum += vectors.sum(dim=0)
            self.generated_count += len(vectors)

    def compute(self) -> dict[str, Tensor]:
        """Cosines in -1...1, float64.

        Returns:
            "value", and "real": the mean over pairs of two different real pictures, above which no generated set can be
            expected; NaN with fewer than two of them. "value" is NaN while either side is empty.
        """
        value = (self.generated_sum @ self.real_sum) / (self.generated_count * self.real_count)
        count = self.real_count.double()
        among_real = (self.real_sum @ self.real_sum - count) / (count * (count - 1))
        return {"value": value, "real": torch.where(count > 1, among_real, torch.nan)}
