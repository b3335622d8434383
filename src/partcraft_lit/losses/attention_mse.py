"""Attention loss of Break-a-Scene: the map of a part, brought to a maximum of 1, should be the part's mask."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.losses.attention import maps_and_masks


def mse_attention_loss(
    attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int, eps: float = 1e-6
) -> Tensor:
    """Mean squared difference between a part's mask and its map over the map's maximum, summed over the parts.

    The sum is over the parts that are in the prompt and in the label map. All places count, also those of other parts.

    Args:
        attention_maps: (B, T, h, w) probability of each part token, mean over heads and layers.
        part_ids: (B, T) part of each token 0...M, -1 where there is none; tokens of one part are summed.
        label_map: (B, H, W) part of each place 0...M; any other value is no part.
        num_parts: foreground parts (M).
        eps: least maximum.

    Returns:
        (B,) from 0 to the number of parts, float32 (float64 for float64 maps); 0 where nothing is left to score.

    Raises:
        ValueError: if the shapes do not fit together.

    Source: Break-a-Scene (arXiv 2305.16311), eq. 2; as in its released code a map is divided by its maximum, through
    which gradients flow. Differs: the paper has masks for every token; a part that no place shows is left out here.
    """
    with torch.autocast(attention_maps.device.type, enabled=False):
        maps, prompted, inside = maps_and_masks(attention_maps, part_ids, label_map, num_parts)
        relative = maps / maps.amax(dim=(2, 3), keepdim=True).clamp_min(eps)
        errors = (inside.to(maps.dtype) - relative).square().mean(dim=(2, 3))  # (B, M + 1)
        scored = prompted & inside.any(dim=3).any(dim=2)
        return errors.masked_fill(~scored, 0.0).sum(dim=1)
