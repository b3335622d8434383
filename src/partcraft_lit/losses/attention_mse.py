"""MSE attention loss of Break-a-Scene."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.losses.attention import maps_and_masks


def mse_attention_loss(
    attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int, eps: float = 1e-6
) -> Tensor:
    """MSE between each part's mask and its map divided by the map's maximum, summed over the parts.

    The sum is over the parts in the prompt and in the label map; the mean is over all pixels, also of other parts.

    Args:
        attention_maps: (B, T, h, w) attention probabilities of the part tokens, mean over heads and layers.
        part_ids: (B, T) part of each token 0...M, -1 where unused; tokens of one part are summed.
        label_map: (B, H, W) part of each pixel 0...M; any other value is no part.
        num_parts: foreground parts (M).
        eps: lower clamp of the maximum.

    Returns:
        (B,) from 0 to the number of parts, float32 (float64 for float64 maps); 0 where no part is scored.

    Raises:
        ValueError: if the shapes do not match.

    Source: Break-a-Scene (arXiv 2305.16311), eq. 2; as in its released code, gradients flow through the
    maximum. Differs: parts without a pixel are left out; the paper has a mask for every token.
    """
    with torch.autocast(attention_maps.device.type, enabled=False):
        maps, prompted, inside = maps_and_masks(attention_maps, part_ids, label_map, num_parts)
        relative = maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(eps)
        errors = (inside.to(maps.dtype) - relative).square().mean(dim=(2, 3))  # (B, M + 1)
        scored = prompted & inside.any(dim=3).any(dim=2)
        return errors.masked_fill(~scored, 0.0).sum(dim=1)
