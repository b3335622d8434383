"""A stand-in network for features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor


class TinyFeatures:
    """Means and deviations of the colours of an image: six numbers."""

    id = "tiny"
    dim = 6

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        pixels = images.float().flatten(2) / 255
        return torch.cat([pixels.mean(dim=2), pixels.std(dim=2, correction=0)], dim=1)


@pytest.fixture
def tiny_features() -> TinyFeatures:
    return TinyFeatures()


@pytest.fixture
def pictures() -> Callable[..., Tensor]:
    """``images(count, seed)``: uint8 (count, 3, 6, 5), each of its own brightness and contrast."""

    def make(count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        scale = 40 + 160 * torch.rand(count, 3, 1, 1, generator=generator)
        return (scale * torch.rand(count, 3, 6, 5, generator=generator)).to(torch.uint8)

    return make


@pytest.fixture(scope="session")
def tiny_clip(tiny_tokenizer: Any) -> tuple[Any, Any]:
    """A CLIPModel of random weights and its tokenizer."""
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {name: getattr(tiny_tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = CLIPConfig(
        text_config={**sizes, **ids, "vocab_size": len(tiny_tokenizer), "max_position_embeddings": 77},
        vision_config={**sizes, "image_size": 32, "patch_size": 16},
        projection_dim=12,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return CLIPModel(config).eval(), tiny_tokenizer
