"""Share of generated images that copy a training image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from partcraft_lit.metrics.features import FeatureMetric, ImageFeatures, unit

_BLOCK = 512


class Memorisation(FeatureMetric):
    """How near generated images come to their nearest training image, beside how near these come to each other.

    An image counts as copied when it is at least as near to a training image as the nearest ``quantile`` of the
    training images are to another one. New images of the same kind would so be counted at about that share; well
    above it, the model copies. Low is good, and far below means that the images are unlike the training's.

    Take it twice: in a network's space, which finds shifted or recoloured copies, and with ``PixelFeatures``, which
    finds exact ones.

    Args:
        features: describes an image.
        quantile: of the distances among training images, 0...1.
        cosine: compare directions only, as is usual for networks; False for pixels.

    Source: after the nearest-neighbour test of Meehan et al. (arXiv 2004.05675); the threshold is ours.
    """

    higher_is_better = False
    name = "copied"

    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self, features: ImageFeatures, quantile: float = 0.05, cosine: bool = True, **kwargs: Any) -> None:
        super().__init__(features, **kwargs)
        if not 0 < quantile < 1:
            raise ValueError(f"quantile must lie between 0 and 1, got {quantile}.")
        self.quantile, self.cosine = quantile, cosine
        self.add_state("real", default=[], dist_reduce_fx="cat")
        self.add_state("generated", default=[], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Adds images, or their (B, D) features, to the training or to the generated ones."""
        vectors = self.describe(images)
        (self.real if real else self.generated).append((unit(vectors) if self.cosine else vectors).float())

    def compute(self) -> dict[str, Tensor]:
        """float64 scalars.

        Returns:
            "value", the share of copied images; "threshold", the distance below which they count as such; "distance"
            and "real_distance", the median distance of a generated and of a training image to its nearest training
            image.

        Raises:
            ValueError: with fewer than two training images or without a generated one.
        """
        real, generated = self._all("real", 2), self._all("generated", 1)
        among, _ = nearest(real, real, itself=True)
        distances, _ = nearest(generated, real)
        threshold = among.quantile(self.quantile)
        return {
            "value": (distances <= threshold).double().mean(),
            "threshold": threshold,
            "distance": distances.quantile(0.5),
            "real_distance": among.quantile(0.5),
        }

    def _all(self, side: str, least: int) -> Tensor:
        state = getattr(self, side)
        found = dim_zero_cat(state) if len(state) else torch.zeros(0, self.features.dim)
        if len(found) < least:
            raise ValueError(f"Memorisation needs at least {least} {side} images, got {len(found)}.")
        return found


def nearest(points: Tensor, others: Tensor, itself: bool = False) -> tuple[Tensor, Tensor]:
    """Euclidean distance of each point to the nearest of ``others``, and which that is.

    Args:
        points: (n, D).
        others: (m, D).
        itself: point i is other i, and does not count as its own neighbour.

    Returns:
        (n,) float64 and (n,) indices.
    """
    targets = others.double()
    lengths = targets.square().sum(dim=1)
    distances, indices = [], []
    for start in range(0, len(points), _BLOCK):
        rows = points[start : start + _BLOCK].double()
        order = lengths - 2 * rows @ targets.T  # the squared distance but for the point's own length
        if itself:
            own = torch.arange(len(rows), device=order.device)
            order[own, own + start] = torch.inf
        best = order.argmin(dim=1)
        indices.append(best)
        distances.append((rows - targets[best]).square().sum(dim=1).sqrt())  # exact: a copy is at distance 0
    return torch.cat(distances), torch.cat(indices)
