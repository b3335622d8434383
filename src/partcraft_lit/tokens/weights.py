"""How strongly a part is asked for: ``<head:3>*1.3``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from partcraft_lit.core.types import TokenizedPrompts


def weigh(vectors: Tensor, tokens: TokenizedPrompts, baked: Tensor, num_codes: Sequence[int]) -> Tensor:
    """Moves each part token's vector along the line from its part's mean to itself.

    With weight w the vector v of a variant becomes ``m + w (v - m)``, where m is the mean over all variants of the
    part: 1 is the variant as trained, 0 the average of its kind, and more than 1 exaggerates what sets it apart. So a
    weight changes *which* head is drawn and never whether there is one; a part with a single variant has no direction
    to go.

    Args:
        vectors: (B, T, D) of the part tokens as trained.
        tokens: the prompts, with ``part_weights`` or None.
        baked: (M + 1, K, D) vectors of all variants.
        num_codes: M + 1 counts; codes of part m are 0...num_codes[m] - 1, further rows of ``baked`` mean nothing.

    Returns:
        (B, T, D); ``vectors`` itself where no token has a weight.
    """
    if tokens.part_weights is None:
        return vectors
    counts = torch.tensor(num_codes, device=baked.device)
    is_code = torch.arange(baked.shape[1], device=baked.device) < counts[:, None]  # (M + 1, K)
    means = (baked * is_code[..., None]).sum(dim=1) / counts.clamp_min(1)[:, None]  # (M + 1, D)
    mean = means[tokens.part_ids.clamp_min(0)].to(vectors.dtype)  # (B, T, D)
    weighted = mean + tokens.part_weights[..., None].to(vectors) * (vectors - mean)
    return torch.where((tokens.part_weights == 1)[..., None], vectors, weighted)  # unused places too
