"""How unlike each other the pictures of one prompt are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from partcraft_lit.metrics.features import FeatureMetric, ImageFeatures, unit


class Diversity(FeatureMetric):
    """Mean cosine distance of two pictures of one prompt, and the Vendi score: how many different ones they amount to.

    Both are averaged over prompts with at least two pictures. The Vendi score of n pictures lies in 1...n; compare
    equal numbers of pictures only. Read it beside fidelity: noise is diverse.

    Args:
        features: describes a picture.

    Source: Friedman and Dieng (arXiv 2210.02410), definition 3.1, with the cosine as kernel; Ruiz et al., DreamBooth
    (arXiv 2208.12242), section 4.3, for the distance, there in LPIPS.
    """

    higher_is_better = True
    name = "diversity"

    vectors: list[Tensor]
    prompts: list[Tensor]

    def __init__(self, features: ImageFeatures, **kwargs: Any) -> None:
        super().__init__(features, **kwargs)
        self.add_state("vectors", default=[], dist_reduce_fx="cat")
        self.add_state("prompts", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, prompts: Tensor | Sequence[int]) -> None:
        """Adds pictures, or their (B, D) features.

        Args:
            images: uint8 (B, 3, H, W) or (B, D).
            prompts: number of the prompt of each; equal numbers are compared.

        Raises:
            ValueError: if there is not one number per picture.
        """
        numbers = torch.as_tensor(prompts, dtype=torch.int64)
        if numbers.shape != (len(images),):
            raise ValueError(f"prompts must be one number per picture: {len(images)} pictures, {tuple(numbers.shape)}.")
        self.vectors.append(unit(self.describe(images)).float())
        self.prompts.append(numbers.to(self.device))

    def compute(self) -> dict[str, Tensor]:
        """ "value", the mean cosine distance in 0...2, "vendi", and "prompts", how many were averaged; float64. NaN if
        no prompt has two pictures."""
        vectors = dim_zero_cat(self.vectors).double() if len(self.vectors) else torch.zeros(0, self.features.dim)
        prompts = dim_zero_cat(self.prompts) if len(self.prompts) else torch.zeros(0, dtype=torch.int64)
        groups = [vectors[prompts == prompt] for prompt in prompts.unique()]
        groups = [group for group in groups if len(group) > 1]
        nothing = torch.tensor([], dtype=torch.float64)
        return {
            "value": torch.stack([1 - _mean_cosine(group) for group in groups]).mean() if groups else nothing.mean(),
            "vendi": torch.stack([vendi_score(group) for group in groups]).mean() if groups else nothing.mean(),
            "prompts": torch.tensor(float(len(groups)), dtype=torch.float64),
        }


def vendi_score(vectors: Tensor) -> Tensor:
    """Exponential of the entropy of the eigenvalues of the cosine matrix over n; 1 for copies, n for orthogonal ones.

    Args:
        vectors: (n, D) of any length but zero.
    """
    unit_vectors = unit(vectors.double())
    values = torch.linalg.eigvalsh(unit_vectors @ unit_vectors.T / len(vectors)).clamp_min(0)
    return torch.special.entr(values).sum().exp()


def _mean_cosine(vectors: Tensor) -> Tensor:
    """Over pairs of different rows of unit length."""
    count = len(vectors)
    return (vectors.sum(dim=0).square().sum() - vectors.square().sum()) / (count * (count - 1))
