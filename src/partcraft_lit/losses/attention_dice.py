"""Soft Dice attention loss."""

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
    """One minus the soft Dice coefficient of attention and mask, mean over the prompt's parts in the label map.

    Attention is normalised as in the entropy loss, ``A_m / sum_j A_j`` over the part tokens of the prompt, at the
    pixels of prompted parts. Dice weighs parts equally, however small; the entropy loss weighs pixels equally.

    Args:
        attention_maps: (B, T, h, w) attention probabilities of the part tokens, mean over heads and layers.
        part_ids: (B, T) part of each token 0...M, -1 where unused; tokens of one part are summed.
        label_map: (B, H, W) part of each pixel 0...M; any other value is no part.
        num_parts: foreground parts (M).
        smooth: added to numerator and denominator, in pixels.
        eps: lower clamp of the divisor.

    Returns:
        (B,) from 0 to 1, float32 (float64 for float64 maps); 0 where no part is scored.

    Raises:
        ValueError: if the shapes do not match.

    Source: V-Net (arXiv 1606.04797), eq. 3, which squares in the denominator; on attention maps, after MultiCrafter
    (arXiv 2509.21953). Differs: maps are normalised over the part tokens, as in the entropy loss.
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
