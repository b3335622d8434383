"""Weights of part tokens in prompts: ``<head:3>*1.3``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from partcraft_lit.core.types import TokenizedPrompts


def apply_part_weights(vectors: Tensor, tokens: TokenizedPrompts, baked: Tensor, num_codes: Sequence[int]) -> Tensor:
    """Extrapolates each part token's vector v from the mean m over the part's codes: ``m + w (v - m)``.

    Weight 1 is the code as trained, 0 the part's average, more than 1 exaggerates the difference. The weight changes
    *which* head is drawn, not whether there is one; with a single code it does nothing.

    Args:
        vectors: (B, T, D) as trained.
        tokens: prompts, with ``part_weights`` or None.
        baked: (M + 1, K, D) vectors of all codes.
        num_codes: M + 1 counts; rows of ``baked`` from ``num_codes[m]`` on are ignored.

    Returns:
        (B, T, D); ``vectors`` itself if no token has a weight.
    """
    if tokens.part_weights is None:
        return vectors
    counts = torch.tensor(num_codes, device=baked.device)
    is_code = torch.arange(baked.shape[1], device=baked.device) < counts[:, None]  # (M + 1, K)
    means = (baked * is_code[..., None]).sum(dim=1) / counts.clamp_min(1)[:, None]  # (M + 1, D)
    mean = means[tokens.part_ids.clamp_min(0)].to(vectors.dtype)  # (B, T, D)
    weighted = mean + tokens.part_weights[..., None].to(vectors) * (vectors - mean)
    return torch.where((tokens.part_weights == 1)[..., None], vectors, weighted)  # unused places too
