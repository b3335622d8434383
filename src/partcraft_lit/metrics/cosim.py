"""Cosine similarity of part codes."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.metrics.parts import PartMetric


class CosineSimilarity(PartMetric):
    """Cosine between the centroid of the target code and the centroid of the code read back from the image.

    It forgives a neighbouring code where :class:`ExactMatchingRate` does not. Centroids of different codes of one part
    are seldom orthogonal, so chance lies well above 0: read it beside the untrained baseline.

    Source: PartCraft (arXiv 2407.04604), section 4 and supplementary, algorithms 1 and 2. Differs: as
    :class:`ExactMatchingRate`.
    """

    def similarity(self, predicted_codes: Tensor, target_codes: Tensor) -> Tensor:
        predicted, target = (
            self.predictor.centroids(codes).cpu().double() for codes in (predicted_codes, target_codes)
        )  # (B, M + 1, D)
        return F.cosine_similarity(predicted, target, dim=-1).to(self.part_sums.device)
