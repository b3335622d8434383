"""Soft IoU attention losses: those of DisenDiff, and the same against part masks."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from partcraft_lit.losses.attention import maps_and_masks

#: The 3 x 3 Gaussian: "paper" is a standard deviation of 0.5; "released" is the code's exp(-(d / 2 sigma)^2), which is
#: one of 0.71; "none" smooths nothing.
Kernel = Literal["paper", "released", "none"]

#: Keeps min-max normalisation of a constant map finite.
_RANGE_EPS = 1e-8
_SIGMA = 0.5


def min_max(maps: Tensor) -> Tensor:
    """Min-max normalises each (..., h, w) map to 0...1; a constant map becomes 0."""
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low + _RANGE_EPS)


def gaussian_kernel(kernel: Kernel) -> Tensor:
    """(3, 3) weights of sum 1.

    Raises:
        ValueError: for another name.
    """
    if kernel not in get_args(Kernel):
        raise ValueError(f"kernel must be one of {get_args(Kernel)}, got {kernel!r}.")
    if kernel == "none":
        return torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    spread = 2.0 * _SIGMA**2 if kernel == "paper" else (2.0 * _SIGMA) ** 2
    side = torch.tensor([math.exp(-(distance**2) / spread) for distance in (-1, 0, 1)])
    weights = side[:, None] * side
    return weights / weights.sum()


def smooth_maps(maps: Tensor, kernel: Kernel = "paper") -> Tensor:
    """(B, N, h, w) maps smoothed by the 3 x 3 Gaussian, reflected at the border."""
    weights = gaussian_kernel(kernel).to(maps)
    count = maps.shape[1]
    if kernel == "none" or count == 0:  # F.pad refuses an empty batch
        return maps
    padded = F.pad(maps, (1, 1, 1, 1), mode="reflect")
    return F.conv2d(padded, weights.expand(count, 1, 3, 3), groups=count)


def soft_iou(first: Tensor, second: Tensor, smooth: float = 1.0) -> Tensor:
    """IoU of (..., h, w) maps in 0...1, (...,), with the product as intersection; 1 for equal binary maps."""
    intersection = (first * second).sum(dim=(-2, -1))
    union = (first + second).sum(dim=(-2, -1)) - intersection
    return (intersection + smooth) / (union + smooth)


def bind_loss(modifier_maps: Tensor, class_maps: Tensor, kernel: Kernel = "paper", smooth: float = 1.0) -> Tensor:
    """One minus the IoU of a modifier token's map with its class noun's, which is detached.

    Args:
        modifier_maps: (B, N, h, w) attention of the learned tokens, any positive scale.
        class_maps: (B, N, h, w) attention of the nouns after them; squared after smoothing.
        kernel: of the smoothing.
        smooth: added to intersection and union.

    Returns:
        (B, N) from 0 to 1.

    Source: DisenDiff (arXiv 2403.18551), section 3.2, and its released ``p_losses``. Differs: no.
    """
    nouns = suppressed(class_maps, kernel).detach()
    return 1.0 - soft_iou(nouns, smooth_maps(min_max(modifier_maps), kernel), smooth)


def separate_loss(class_maps: Tensor, used: Tensor, kernel: Kernel = "paper", smooth: float = 1.0) -> Tensor:
    """Mean pairwise IoU of the class nouns' maps: "separate and strengthen".

    Args:
        class_maps: (B, N, h, w) attention of the nouns, any positive scale.
        used: (B, N) booleans, which nouns are present.
        kernel: of the smoothing.
        smooth: added to intersection and union; favours larger maps once they are disjoint.

    Returns:
        (B,) from 0 to 1, mean over the pairs; 0 where there is none.

    Source: DisenDiff (arXiv 2403.18551), section 3.2, and its released ``p_losses``, whose mean over pairs this is.
    Differs: the paper writes a sum, which is the same for two concepts.
    """
    maps = suppressed(class_maps, kernel)
    return pair_mean(soft_iou(maps[:, :, None], maps[:, None], smooth), used)


def suppressed(maps: Tensor, kernel: Kernel) -> Tensor:
    """Min-max normalised, smoothed and squared maps of class nouns."""
    return smooth_maps(min_max(maps), kernel).square()


def pair_mean(values: Tensor, used: Tensor) -> Tensor:
    """Mean of (B, N, N) pairwise values over the pairs i < j of used items, (B,); 0 without a pair."""
    pairs = (used[:, :, None] & used[:, None]).triu(diagonal=1)
    return values.masked_fill(~pairs, 0.0).sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp_min(1)


def iou_attention_loss(
    attention_maps: Tensor,
    part_ids: Tensor,
    label_map: Tensor,
    num_parts: int,
    kernel: Kernel = "none",
    separate: float = 0.0,
    smooth: float = 1.0,
) -> Tensor:
    """One minus the soft IoU of a part's map with its mask, mean over the parts in the prompt and in the label map.

    The mask takes the place of the class noun's map in DisenDiff, which has no masks.

    Args:
        attention_maps: (B, T, h, w) attention probabilities of the part tokens, mean over heads and layers.
        part_ids: (B, T) part of each token 0...M, -1 where unused; tokens of one part are summed.
        label_map: (B, H, W) part of each pixel 0...M; any other value is no part.
        num_parts: foreground parts (M).
        kernel: smoothing of the min-max normalised maps.
        separate: weight of ``separate_loss`` between the parts.
        smooth: added to intersection and union, in pixels.

    Returns:
        (B,) float32 (float64 for float64 maps); 0 where no part is scored.

    Raises:
        ValueError: if the shapes do not match, or for an unknown kernel.

    Source: DisenDiff (arXiv 2403.18551). Differs: masks instead of class nouns.
    """
    with torch.autocast(attention_maps.device.type, enabled=False):
        maps, prompted, inside = maps_and_masks(attention_maps, part_ids, label_map, num_parts)
        scored = prompted & inside.any(dim=3).any(dim=2)
        missed = 1.0 - soft_iou(inside.to(maps.dtype), smooth_maps(min_max(maps), kernel), smooth)
        loss = missed.masked_fill(~scored, 0.0).sum(dim=1) / scored.sum(dim=1).clamp_min(1)
        return loss + separate * separate_loss(maps, scored, kernel, smooth) if separate else loss
