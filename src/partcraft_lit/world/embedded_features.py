"""The networks of the package as features of whole images: no download, and made for drawn creatures."""

from __future__ import annotations

from dataclasses import replace

import torch

from partcraft_lit.metrics.features import PooledPatchFeatures
from partcraft_lit.world.mini_features import MiniFeatures


def embedded_features(stride: int = 4, batch_size: int = 64, device: str | torch.device = "cpu") -> PooledPatchFeatures:
    """The embedded patch features, pooled; the id is ``mini-features``.

    Their edges are not sharpened as for discovery: it costs much and changes little in a mean.

    Args:
        stride: pixels per place: 1, 2 or 4.
        batch_size: images per forward pass.
        device: where it runs.

    Raises:
        UserError: if the weights are missing.
    """
    patches = MiniFeatures(batch_size=batch_size, device=device)
    patches.settings = replace(patches.settings, stride=stride, rounds=0)
    return PooledPatchFeatures(patches)
