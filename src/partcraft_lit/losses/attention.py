"""Entropy attention loss: each pixel attends to the token of the part that it belongs to."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from partcraft_lit.core.labels import resize_labels
from partcraft_lit.losses.settings import Balance

#: Normalisation of attention maps: "parts" divides by the sum over the prompt's part tokens; "softmax" leaves them as
#: they come from the softmax over all text positions.
Normalizer = Literal["parts", "softmax"]
#: Pixels whose part is not in the prompt: "ignore" them, or score them as the "released" code of PartCraft does.
Unprompted = Literal["ignore", "released"]

#: Lower clamp of the logarithms in ``F.binary_cross_entropy``, and so in the released code.
LOG_FLOOR = -100.0


def part_attention_maps(attention_maps: Tensor, part_ids: Tensor, num_parts: int) -> tuple[Tensor, Tensor]:
    """Sums the attention maps of each part's tokens.

    Args:
        attention_maps: (B, T, h, w) attention probabilities of the part tokens.
        part_ids: (B, T) part of each token, -1 where unused.
        num_parts: foreground parts (M).

    Returns:
        (B, M + 1, h, w) maps, zeros for a part without a token, and (B, M + 1) booleans, which parts have one.

    Raises:
        ValueError: if the shapes do not match.
    """
    if attention_maps.ndim != 4 or attention_maps.shape[:2] != part_ids.shape:
        raise ValueError(
            f"attention_maps must be (batch, tokens, height, width) with one part id per token, got "
            f"{tuple(attention_maps.shape)} and part_ids {tuple(part_ids.shape)}."
        )
    parts = torch.arange(num_parts + 1, device=part_ids.device)
    belongs = part_ids[:, :, None] == parts  # (B, T, M + 1)
    # Multiply and sum, not matmul: exact in float32 also where matmul rounds to TF32.
    maps = (attention_maps[:, :, None] * belongs[..., None, None]).sum(dim=1)
    return maps, belongs.any(dim=1)


def maps_and_masks(
    attention_maps: Tensor, part_ids: Tensor, label_map: Tensor, num_parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention maps and binary masks of all parts, the inputs of every attention loss; call it outside autocast.

    Args:
        attention_maps: (B, T, h, w) attention probabilities of the part tokens.
        part_ids: (B, T) part of each token, -1 where unused.
        label_map: (B, H, W) part of each pixel, of any size; values outside 0...M are no part.
        num_parts: foreground parts (M).

    Returns:
        (B, M + 1, h, w) maps, float32 (float64 for float64 maps); (B, M + 1) booleans, which parts are in the prompt;
        and (B, M + 1, h, w) boolean masks.

    Raises:
        ValueError: if the shapes do not match.
    """
    if label_map.ndim != 3 or label_map.shape[0] != attention_maps.shape[0]:
        raise ValueError(
            f"label_map must be (batch, height, width) for the batch of attention_maps {tuple(attention_maps.shape)}, "
            f"got {tuple(label_map.shape)}."
        )
    maps = attention_maps if attention_maps.dtype == torch.float64 else attention_maps.float()
    maps, prompted = part_attention_maps(maps, part_ids, num_parts)
    labels = resize_labels(label_map, maps.shape[-2:], num_parts + 1)
    parts = torch.arange(num_parts + 1, device=labels.device)
    return maps, prompted, labels[:, None] == parts[:, None, None]


def entropy_attention_loss(
    attention_maps: Tensor,
    part_ids: Tensor,
    label_map: Tensor,
    num_parts: int,
    normalizer: Normalizer = "parts",
    unprompted: Unprompted = "ignore",
    balance: Balance = "none",
    eps: float = 1e-6,
) -> Tensor:
    """Binary cross-entropy between each part's normalised attention and its mask.

    With "ignore", the mean is over the parts in the prompt and the pixels of these parts: parts that are absent,
    cropped away or dropped from the caption change nothing. With "released", the mean is over all M + 1 parts and all
    pixels; a part that is in the mask and not in the prompt adds 100 per pixel, and absent parts dilute the others.

    Args:
        attention_maps: (B, T, h, w) attention probabilities of the part tokens, mean over heads and layers, in the
            order of ``part_ids``; maps of unused tokens are ignored.
        part_ids: (B, T) part of each token 0...M, -1 where unused; tokens of one part are summed.
        label_map: (B, H, W) part of each pixel 0...M, resized to the maps by majority; any other value is no
            part.
        num_parts: foreground parts (M).
        normalizer: "parts" or "softmax".
        unprompted: "ignore" or "released".
        balance: with "ignore": "none" for the mean over pixels; "area" for the mean over parts of the means over their
            pixels; "hardest" weighs these by themselves, so that the part with the largest loss counts most.
        eps: lower clamp of the divisor.

    Returns:
        (B,) in nats, float32 (float64 for float64 maps); 0 where no pixel is scored.

    Raises:
        ValueError: if the shapes do not match, or for an unknown option.

    Source: PartCraft (arXiv 2407.04604), the entropy-based normalised attention loss, and its released ``loss.py``,
    which is ``normalizer="parts", unprompted="released"``, with repeated tokens an error. Differs: "ignore"; 1 - share
    is summed from the other parts, so that it keeps its precision and gradient near 0.
    """
    _check_options(normalizer, unprompted, balance)
    with torch.autocast(attention_maps.device.type, enabled=False):
        maps, prompted, inside = maps_and_masks(attention_maps, part_ids, label_map, num_parts)
        share, rest = _shares(maps, normalizer, eps)
        nats = -torch.where(inside, _log(share), _log(rest))
        if unprompted == "released":
            return nats.mean(dim=(1, 2, 3))
        places = (inside & prompted[:, :, None, None]).any(dim=1)
        scored = prompted[:, :, None, None] & places[:, None]
        if balance != "none":
            of_cells = nats.masked_fill(~scored, 0.0).sum(dim=1) / prompted.sum(dim=1).clamp_min(1)[:, None, None]
            return balanced_mean(of_cells, inside & scored, balance)
        return nats.masked_fill(~scored, 0.0).sum(dim=(1, 2, 3)) / scored.sum(dim=(1, 2, 3)).clamp_min(1)


def balanced_mean(values: Tensor, masks: Tensor, balance: Balance) -> Tensor:
    """Mean over the parts of the means over their pixels.

    Args:
        values: (B, h, w) loss of each pixel, 0 or more.
        masks: (B, P, h, w) booleans, pixels of each part; a part without any is left out.
        balance: "area" weighs parts alike; "hardest" by their own mean, through which no gradient flows.

    Returns:
        (B,); 0 without a part.

    Source: "hardest" after MagicTailor (arXiv 2410.13370), section 3.3, which trains on the worst concept alone.
    """
    area = masks.sum(dim=(2, 3))
    means = (values[:, None] * masks).sum(dim=(2, 3)) / area.clamp_min(1)  # (B, P)
    weights = (area > 0).to(means.dtype)
    if balance == "hardest":
        weights = weights * means.detach()
    return (weights * means).sum(dim=1) / weights.sum(dim=1).clamp_min(1e-12)


def _shares(maps: Tensor, normalizer: Normalizer, eps: float) -> tuple[Tensor, Tensor]:
    """Normalised attention of each part, and of everything else."""
    if normalizer == "softmax":
        # Two tokens of a part can sum to 1 + rounding.
        return maps.clamp(0.0, 1.0), (1.0 - maps).clamp(0.0, 1.0)
    other = ~torch.eye(maps.shape[1], dtype=torch.bool, device=maps.device)  # (M + 1, M + 1)
    others = (maps[:, None] * other[:, :, None, None]).sum(dim=2)  # (B, M + 1, h, w)
    total = maps + others  # per part, so that no share is rounded above 1
    divisor = total.clamp_min(eps)
    rest = torch.where(total < eps, divisor - maps, others)
    return maps / divisor, rest / divisor


def _log(values: Tensor) -> Tensor:
    """Clamped logarithm; near 0, where the gradient 1 / value would overflow, its gradient is 0."""
    tiny = values < 1e-30
    floored = values.detach().log().clamp_min(LOG_FLOOR)
    return torch.where(tiny, floored, torch.where(tiny, 1.0, values).log())


def _check_options(normalizer: str, unprompted: str, balance: str) -> None:
    for name, value, known in (
        ("normalizer", normalizer, get_args(Normalizer)),
        ("unprompted", unprompted, get_args(Unprompted)),
        ("balance", balance, get_args(Balance)),
    ):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}.")
    if balance != "none" and unprompted == "released":
        raise ValueError(
            f"balance={balance!r} leaves out parts that are not in the prompt, unprompted='released' does not."
        )
