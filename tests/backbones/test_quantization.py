from __future__ import annotations

import importlib.util

import pytest
import torch

import tiny_klein
from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.backbones.quantization import bytes_of, require
from partcraft_lit.core.errors import UserError


def arguments(backbone):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 16, 8, 8, generator=generator), torch.tensor([300.0]), backbone.encode_unconditional()


@pytest.fixture(scope="module")
def pair():
    """The same model in 16 bits and in 8."""
    pytest.importorskip("torchao")
    return tiny_klein.backbone(dtype="bfloat16"), tiny_klein.backbone(dtype="bfloat16", quantize="int8")


def test_int8_is_close_and_has_the_hash_of_the_whole_weights(pair):
    whole, small = pair
    assert small.hash == whole.hash and small.dtype == torch.bfloat16
    with torch.no_grad():
        expected, found = (each.denoise(*arguments(each)) for each in pair)
    assert (found - expected).abs().mean() < 0.05 * expected.abs().mean()
    assert not torch.equal(found, expected)
    weights = [p for p in small.transformer.parameters() if p.ndim == 2]
    assert all(type(weight).__name__ == "Int8Tensor" for weight in weights)


def test_an_adapter_trains_on_int8(pair):
    small = tiny_klein.backbone(dtype="bfloat16", quantize="int8")
    with torch.no_grad():
        before = small.denoise(*arguments(small))
    trained = add_lora(small.denoiser, rank=2, scope="all", targets=small.lora_targets("all"))
    latents, times, conditioning = arguments(small)
    conditioning.encoder_hidden_states.requires_grad_()
    output = small.denoise(latents, times, conditioning)
    assert torch.equal(output, before)
    output.square().mean().backward()
    assert conditioning.encoder_hidden_states.grad.abs().sum() > 0
    assert sum(p.grad.abs().sum() > 0 for p in trained) == len(trained) // 2, "the up projections"


def test_bytes_by_hand():
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Embedding(5, 2))
    assert bytes_of(network, torch.bfloat16, None) == 2 * (32 + 8 + 10)
    assert bytes_of(network, torch.bfloat16, "int8") == 32 + 2 * (8 + 10)


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'partcraft-lit\[quantize\]'"):
        require("int8")
