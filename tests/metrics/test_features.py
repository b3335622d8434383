"""One vector per image."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.metrics.features import PixelFeatures, PooledPatchFeatures
from partcraft_lit.metrics.fid import FrechetDistance
from partcraft_lit.world.mini_features import MiniFeatures


class TwoPatches:
    id, dim = "two", 1

    def __call__(self, images):
        return [torch.tensor([[[1.0], [3.0]]]) * (1 + i) for i in range(len(images))]


def test_patches_are_pooled_by_hand():
    features = PooledPatchFeatures(TwoPatches())
    assert (features.id, features.dim) == ("two-features", 2)
    found = features(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    assert found.tolist() == [[2.0, 1.0], [4.0, 2.0]]


def test_the_embedded_network_serves(pictures):
    features = PooledPatchFeatures(MiniFeatures())
    images = torch.nn.functional.interpolate(pictures(2).float(), 64).to(torch.uint8)
    found = features(images)
    assert features.id == "mini-features"
    assert found.shape == (2, features.dim)
    torch.testing.assert_close(found[1:], features(images[1:]), atol=1e-4, rtol=1e-4)


def test_pixels_are_colours_in_places():
    image = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    image[0, 1, :, 4:] = 255
    features = PixelFeatures(side=2)
    assert features.dim == 12
    assert features(image)[0].tolist() == pytest.approx([0] * 4 + [0.1429, 0.8571] * 2 + [0] * 4, abs=1e-3)


def test_metrics_take_pictures_or_their_features(tiny_features, pictures):
    metric = FrechetDistance(tiny_features)
    assert metric.key == "fid@tiny"
    images = pictures(5)
    torch.testing.assert_close(metric.describe(images), metric.describe(tiny_features(images)))
    with pytest.raises(ValueError, match=r"uint8 \(B, 3, height, width\), got torch.uint8 \(3, 6, 5\)"):
        metric.describe(images[0])
    with pytest.raises(ValueError, match=r"or features \(B, 6\); got torch.float32 \(5, 3, 6, 5\)"):
        metric.describe(images.float())
    with pytest.raises(ValueError, match="tiny gave features that are not finite"):
        metric.describe(torch.full((2, 6), float("inf")))
