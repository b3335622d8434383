"""MPS has no float64: a stand-in for its tensors refuses what MPS refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from partcraft_lit.backbones.lora import LoraLayer
from partcraft_lit.backbones.lora_extraction import _factors
from partcraft_lit.evaluation.concepts import _described
from partcraft_lit.evaluation.whole_images import _cosines
from partcraft_lit.metrics.clip import ClipScore
from partcraft_lit.metrics.cosim import CosineSimilarity
from partcraft_lit.metrics.features import unit_float64
from partcraft_lit.metrics.fid import FrechetDistance
from partcraft_lit.metrics.kid import KernelDistance
from partcraft_lit.metrics.leakage import leakage_matrix
from partcraft_lit.metrics.memorisation import Memorisation


class OnMps(torch.Tensor):
    """A tensor that becomes an ordinary one by ``.cpu()``, and that no float64 may be made of or meet."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        if func is torch.Tensor.cpu:
            return result.as_subclass(torch.Tensor)
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64: MPS has no float64.")
        return result


def on_mps(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).as_subclass(OnMps)


class Network:
    """Describes images and texts on the device."""

    id, dim = "mps", 8

    def __call__(self, images):
        return on_mps(len(images), self.dim)

    def texts(self, texts):
        return on_mps(len(texts), self.dim)


IMAGES = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)


def test_the_stand_in_refuses_float64():
    with pytest.raises(TypeError, match="float64"):
        on_mps(2).double()
    assert unit_float64(on_mps(2, 3)).dtype == torch.float64


@pytest.mark.parametrize("metric", [FrechetDistance, KernelDistance, Memorisation])
def test_metrics_of_features(metric):
    scored = metric(Network())
    for real in (True, False):
        scored.update(IMAGES, real=real)
    result = scored.compute()
    assert all(value.dtype == torch.float64 for value in (result.values() if isinstance(result, dict) else [result]))


def test_text_and_image_alignment():
    score = ClipScore(Network())
    score.update(IMAGES, ["a bird"] * 4)
    assert float(score.compute()) == pytest.approx(2.5)
    assert _described(Network(), list(IMAGES)).dtype == torch.float64
    assert _cosines(on_mps(2, 3), on_mps(2, 3)).tolist() == pytest.approx([1, 1])


def test_attention_and_codes():
    maps, part_ids = on_mps(1, 2, 4, 4), torch.tensor([[0, 1]]).as_subclass(OnMps)
    matrix = leakage_matrix(maps, part_ids, torch.zeros(1, 4, 4, dtype=torch.uint8).as_subclass(OnMps), 1)
    assert matrix[:, 0].tolist() == [1, 1]
    predictor = SimpleNamespace(num_parts=1, centroids=lambda codes: on_mps(*codes.shape, 3))
    codes = torch.zeros(4, 2, dtype=torch.long)
    assert CosineSimilarity(predictor).similarity(codes, codes).tolist() == [[pytest.approx(1)] * 2] * 4


def test_changes_of_weights():
    up, down = _factors(on_mps(4, 4))
    assert (up @ down).dtype == torch.float64
    assert LoraLayer(on_mps(2, 4), on_mps(4, 2)).delta().shape == (4, 4)
