"""A judge that cuts both parts out and compares them as images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import Positive, Share
from partcraft_lit.core.store import stable_hash
from partcraft_lit.judges.judge import Comparison, PartView
from partcraft_lit.judges.regions import crop_part, square
from partcraft_lit.metrics.features import ImageFeatures, unit_float64


class CropJudge:
    """Cosine of two crops in the space of an image network; what lies below 0 is 0.

    Args:
        features: describes the crops.
        side: of the crops in pixels.
        margin: around a part, as a share of the longer side of its box.
        fade: how far everything but the part goes to grey, 0...1.
        batch_size: crops per call of the network.
    """

    def __init__(
        self,
        features: ImageFeatures,
        side: Positive = 64,
        margin: Share = 0.15,
        fade: Share = 0.5,
        batch_size: Positive = 64,
    ) -> None:
        self._features = features
        self._side, self._margin, self._fade, self._batch_size = side, margin, fade, batch_size
        self.id = f"crops by {features.id}"
        settings = {"side": side, "margin": margin, "fade": fade, "version": 1}
        self.hash = stable_hash("crops", features.id, _fingerprint(features, side), settings)

    @torch.no_grad()
    def __call__(self, comparisons: Sequence[Comparison]) -> Tensor:
        scores = torch.full((len(comparisons),), torch.nan, dtype=torch.float64)
        crops = [(self._crop(c.source, c.part), self._crop(c.generated, c.part)) for c in comparisons]
        seen = [
            (row, ours, theirs) for row, (ours, theirs) in enumerate(crops) if ours is not None and theirs is not None
        ]
        if seen:
            rows, sources, generated = zip(*seen, strict=True)
            cosines = (self._describe(sources) * self._describe(generated)).sum(dim=1)
            scores[list(rows)] = cosines.clamp(0, 1)
        return scores

    def _crop(self, view: PartView, part: int) -> Tensor | None:
        crop = crop_part(view, part, self._margin, self._fade)
        return None if crop is None else square(crop, self._side)

    def _describe(self, crops: Sequence[Tensor]) -> Tensor:
        """(B, D) float64 of length 1."""
        return torch.cat(
            [unit_float64(self._features(piece)) for piece in torch.stack(list(crops)).split(self._batch_size)]
        )


def _fingerprint(features: ImageFeatures, side: int) -> list[float]:
    """What the network says of one image: other weights or another preparation say something else."""
    ramp = torch.linspace(0, 4 * math.pi, side)
    waves = torch.stack([torch.sin(ramp)[:, None] * torch.cos(shift * ramp)[None] for shift in (1, 2, 3)])
    vector = unit_float64(features(((waves + 1) * 127).to(torch.uint8)[None]))[0]
    if not bool(vector.isfinite().all()):
        raise UserError(f"{features.id} gives features that are not finite, so it cannot judge; try another network.")
    return [round(value, 4) for value in vector.tolist()]
