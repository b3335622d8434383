"""Whole weights that were changed, told as a LoRA: what Custom Diffusion and its merge leave in the projections."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from partcraft_lit.backbones.lora import LoraLayer

#: Singular values below this share of the largest are rounding.
_TOLERANCE = 1e-5


def extract_lora_layers(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """The changes of linear layers as products of two thin matrices.

    All have one rank, that of the layer which needs most, filled up with zeros: readers of LoRA files differ in what
    they do with several ranks in one file. A merge of s conditions gives rank s; a training gives nearly full rank.

    Args:
        before: ``<layer>.weight`` -> (outputs, inputs).
        after: the same names.

    Returns:
        Name of each layer -> its change, float32 on the CPU.
    """
    factors = {name.removesuffix(".weight"): _factors(after[name] - before[name]) for name in before}
    rank = max(1, *(up.shape[1] for up, _ in factors.values()))
    layers = {}
    for name, (up, down) in factors.items():
        missing = rank - up.shape[1]
        padded = pad(down, (0, 0, 0, missing)), pad(up, (0, missing))
        layers[name] = LoraLayer(padded[0].float().contiguous(), padded[1].float().contiguous())
    return layers


def _factors(change: Tensor) -> tuple[Tensor, Tensor]:
    """(outputs, rank) and (rank, inputs), each with the root of the singular values."""
    left, values, right = torch.linalg.svd(change.cpu().double(), full_matrices=False)
    rank = int((values > _TOLERANCE * values[0]).sum())
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
