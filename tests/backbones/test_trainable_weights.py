from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from partcraft_lit.backbones.text import plain_tokens
from partcraft_lit.backbones.trainable_weights import cross_kv, set_trainable, trainable_groups

LORA = {"rank": 2, "alpha": None, "scope": "cross", "seed": 0}


def trainable(network) -> set[str]:
    return {name for name, p in network.named_parameters() if p.requires_grad}


def test_an_adapter_and_nothing_else(fresh_backbone):
    set_trainable(fresh_backbone, "lora", False, **LORA)
    assert list(trainable_groups(fresh_backbone)) == ["lora"]
    assert all(".lora_" in name for name in trainable(fresh_backbone.unet))


def test_nothing(fresh_backbone):
    fresh_backbone.unet.requires_grad_(True)
    set_trainable(fresh_backbone, "none", False, **LORA)
    assert trainable_groups(fresh_backbone) == {}
    assert not any(p.requires_grad for p in fresh_backbone.parameters())


def test_all_of_the_unet(fresh_backbone):
    set_trainable(fresh_backbone, "full", False, **LORA)
    groups = trainable_groups(fresh_backbone)
    assert list(groups) == ["unet"] and len(groups["unet"]) == len(list(fresh_backbone.unet.parameters()))
    assert fresh_backbone.dtype == torch.float32


def test_words_keep_their_vectors_when_the_text_encoder_trains(fresh_backbone):
    set_trainable(fresh_backbone, "none", True, **LORA)
    encoder = fresh_backbone.text_encoders[0]
    names = {name for name, _ in encoder.named_parameters()}
    (table,) = names - trainable(encoder)
    assert table.endswith("token_embedding.weight")
    assert list(trainable_groups(fresh_backbone)) == ["text_encoder"]
    states = fresh_backbone.encode_prompts(plain_tokens(fresh_backbone.tokenizers, ["a bird"]), None)
    states.encoder_hidden_states.square().sum().backward()
    assert encoder.get_input_embeddings().weight.grad is None
    assert all(p.grad is not None for p in trainable_groups(fresh_backbone)["text_encoder"])


def test_keys_and_values_of_sd15(sd15_unet):
    """By hand: 16 layers read 768 numbers of text into 320 (5 layers), 640 (5) and 1280 (6) channels, twice."""
    unet = copy.deepcopy(sd15_unet)
    count = sum(p.numel() for _, p in cross_kv(unet))
    assert count == 2 * 768 * (5 * 320 + 5 * 640 + 6 * 1280) == 19_169_280
    backbone = SimpleNamespace(
        denoiser=unet, vae=torch.nn.Identity(), text_encoders=(), cross_kv=lambda: cross_kv(unet)
    )
    set_trainable(backbone, "cross_kv", False, **LORA)
    assert sum(p.numel() for p in trainable_groups(backbone)["unet"]) == count
    assert all(".attn2." in name for name in trainable(unet))


def test_an_unknown_kind_is_refused(fresh_backbone):
    with pytest.raises(ValueError, match="unet='lara': known are 'lora', 'full', 'cross_kv' and 'none'"):
        set_trainable(fresh_backbone, "lara", False, **LORA)
