"""Cross-entropy of parts and codes that a network reads off latents."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.types import ABSENT
from partcraft_lit.losses.attention import balanced_mean


def part_prediction_loss(part_logits: Tensor, code_logits: Tensor, labels: Tensor, codes: Tensor) -> Tensor:
    """How well parts are seen where they are, and their codes recognised.

    Args:
        part_logits: (B, M + 1, h, w).
        code_logits: (B, M + 1, K).
        labels: (B, h, w) part of each place; values outside 0...M are not scored.
        codes: (B, M + 1), ``ABSENT`` for parts that are not scored.

    Returns:
        (B,) in nats, float32: mean over parts of the cross-entropy at their places, each part alike, plus mean over
        parts of the cross-entropy of their codes. 0 without any part.

    Source: the concept predictor of PartComposer (arXiv 2506.03004), which has a class and a mask for each concept.
    Differs: its classes are codes of parts.
    """
    with torch.autocast(labels.device.type, enabled=False):
        number = part_logits.shape[1]
        known = (labels >= 0) & (labels < number)
        places = F.cross_entropy(part_logits.float(), labels.masked_fill(~known, 0).long(), reduction="none")
        parts = torch.arange(number, device=labels.device)
        masks = (labels[:, None] == parts[:, None, None]) & known[:, None]  # (B, M + 1, h, w)
        of_places = balanced_mean(places, masks, "area")
        scored = (codes != ABSENT) & masks.any(dim=3).any(dim=2)
        of_codes = F.cross_entropy(
            code_logits.float().flatten(0, 1), codes.masked_fill(~scored, 0).long().flatten(), reduction="none"
        ).view(codes.shape)
        return of_places + of_codes.masked_fill(~scored, 0.0).sum(dim=1) / scored.sum(dim=1).clamp_min(1)
