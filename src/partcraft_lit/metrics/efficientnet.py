"""EfficientNet-Lite0 as features of whole images: photographs without a hub."""

from __future__ import annotations

import torch

from partcraft_lit.metrics.features import PooledPatchFeatures
from partcraft_lit.parts.efficientnet import EfficientNetFeatures


def load_efficientnet(size: int = 224, batch_size: int = 32, device: str | torch.device = "cpu") -> PooledPatchFeatures:
    """Its patch features at two depths, pooled, without colour statistics; the id is ``efficientnet_lite0-features``.

    Args:
        size: shorter side in pixels of what the network sees.
        batch_size: images per forward pass.
        device: where it runs.

    Raises:
        UserError: if the weights are missing or damaged, or ``size`` is below 32.
    """
    return PooledPatchFeatures(EfficientNetFeatures(size=size, color=0.0, batch_size=batch_size, device=device))
