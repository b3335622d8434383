"""EfficientNet-Lite0 describes whole images by its patches' mean and spread."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from partcraft_lit.metrics.efficientnet import load_efficientnet
from partcraft_lit.parts.efficientnet import EfficientNetFeatures


def test_the_vector_pools_the_activations(pictures):
    images = pictures(2).repeat(1, 1, 8, 8)
    network = load_efficientnet(size=64)
    assert network.id == "efficientnet_lite0-features"
    patches = EfficientNetFeatures(size=64, color=0.0)(list(images))
    wanted = torch.stack([torch.cat([g.mean((0, 1)), g.std((0, 1), correction=0)]) for g in patches])
    assert_close(network(images), wanted)
    assert network(images).shape == (2, network.dim)
