"""Dice attention loss: the share of attention that a part gets should overlap with the part's mask."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.losses.attention import maps_and_masks


def dice_attention_loss(
    attention_maps: Tensor,
    part_ids: Tensor,
    label_map: Tensor,
    num_parts: int,
    smooth: float = 0.0,
    eps: float = 1e-6,
) -> Tensor:
    """One minus the soft Dice coefficient of share and mask, mean over the parts in the prompt and in the label map.

    The share is that of the entropy loss, ``A_m / sum_j A_j`` over the part tokens of the prompt, at the places that
    show one of the prompted parts. Dice weighs each part alike, however small; the entropy loss weighs each place.

    Args:
        attention_maps: (B, T, h, w) probability of each part token, mean over heads and layers.
        part_ids: (B, T) part of each token 0...M, -1 where there is none; tokens of one part are summed.
        label_map: (B, H, W) part of each place 0...M; any other value is no part.
        num_parts: foreground parts (M).
        smooth: added to numerator and denominator, in places.
        eps: least divisor.

    Returns:
        (B,) from 0 to 1, float32 (float64 for float64 maps); 0 where nothing is left to score.

    Raises:
        ValueError: if the shapes do not fit together.

    Source: V-Net (arXiv 1606.04797), eq. 3, which squares in the denominator; on attention maps, after MultiCrafter
    (arXiv 2509.21953). Differs: the maps are shares among part tokens, so that the loss compares with the entropy loss.
    """
    with torch.autocast(attention_maps.device.type, enabled=False):
        maps, prompted, inside = maps_and_masks(attention_maps, part_ids, label_map, num_parts)
        scored = prompted & inside.any(dim=3).any(dim=2)
        places = (inside & prompted[:, :, None, None]).any(dim=1, keepdim=True)  # (B, 1, h, w)
        share = maps / maps.sum(dim=1, keepdim=True).clamp_min(eps) * places
        mask = inside.to(maps.dtype)
        overlap = (share * mask).sum(dim=(2, 3))  # (B, M + 1)
        total = share.square().sum(dim=(2, 3)) + mask.sum(dim=(2, 3))
        dice = (2.0 * overlap + smooth) / (total + smooth).clamp_min(eps)
        return (1.0 - dice).masked_fill(~scored, 0.0).sum(dim=1) / scored.sum(dim=1).clamp_min(1)
