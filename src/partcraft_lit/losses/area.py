"""Weights of the diffusion loss by the size of parts: a small part has as few latents as it has pixels."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.core.labels import resize_labels


def part_area_weights(
    label_map: Tensor, num_parts: int, height: int, width: int, exponent: float, outlines: float
) -> Tensor:
    """Weight of each latent: (area of its part)^-exponent, times ``outlines`` where it borders on another part.

    Args:
        label_map: (B, s, s) part of each cell 0...M; any other value is no part.
        num_parts: foreground parts (M).
        height, width: of the latents, to which labels are resized by majority.
        exponent: 0 weighs latents alike, 0.5 divides by the square root of the area, 1 weighs parts alike.
        outlines: factor of latents with a neighbour of another label to the left, right, above or below.

    Returns:
        (B, height, width) float32 of mean 1 over the latents of parts; 1 elsewhere.
    """
    labels = resize_labels(label_map, (height, width), num_parts + 1).long().clamp_max(num_parts + 1)
    members = torch.nn.functional.one_hot(labels, num_parts + 2)  # (B, h, w, M + 2), the last one no part
    area = members.sum(dim=(1, 2)).clamp_min(1).float()  # (B, M + 2)
    weights = area.pow(-exponent).gather(1, labels.flatten(1)).view(labels.shape)
    weights = torch.where(_borders(labels), outlines * weights, weights)
    known = labels <= num_parts
    mean = weights.masked_fill(~known, 0.0).sum(dim=(1, 2)) / known.sum(dim=(1, 2)).clamp_min(1)
    return torch.where(known, weights / mean.clamp_min(1e-6)[:, None, None], 1.0)


def _borders(labels: Tensor) -> Tensor:
    """(B, h, w) cells with another label beside them."""
    result = torch.zeros_like(labels, dtype=torch.bool)
    down, right = labels[:, 1:] != labels[:, :-1], labels[:, :, 1:] != labels[:, :, :-1]
    result[:, 1:] |= down
    result[:, :-1] |= down
    result[:, :, 1:] |= right
    result[:, :, :-1] |= right
    return result
