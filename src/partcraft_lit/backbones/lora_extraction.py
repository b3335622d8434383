"""SVD of weight deltas into LoRA factors, for exports of Custom Diffusion and its merge."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from partcraft_lit.backbones.lora import LoraLayer

#: Relative to the largest singular value; smaller ones are rounding.
_TOLERANCE = 1e-5


def extract_lora_layers(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, LoraLayer]:
    """LoRA factors of the weight deltas of linear layers.

    All layers are zero-padded to the largest rank: readers differ on files with several ranks. A merge of s conditions
    has rank s, a training nearly full rank.

    Args:
        before: ``<layer>.weight`` -> (outputs, inputs).
        after: the same names.

    Returns:
        Layer name -> factors, float32 on the CPU.
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
    """(outputs, rank) and (rank, inputs), singular values split evenly."""
    left, values, right = torch.linalg.svd(change.cpu().double(), full_matrices=False)
    rank = int((values > _TOLERANCE * values[0]).sum())
    roots = values[:rank].sqrt()
    return left[:, :rank] * roots, roots[:, None] * right[:rank]
