"""Exact matching rate."""

from __future__ import annotations

from torch import Tensor

from partcraft_lit.metrics.parts import PartMetric


class ExactMatchingRate(PartMetric):
    """Share of parts whose code, read back from the image, is the target code.

    Source: PartCraft (arXiv 2407.04604), section 4 and supplementary, algorithms 1 and 2. Differs: absent parts, which
    the paper leaves open, are scored as in :class:`PartMetric`, and values without the background and per part come
    beside the published mean over all parts.
    """

    def similarity(self, predicted_codes: Tensor, target_codes: Tensor) -> Tensor:
        return predicted_codes == target_codes
