from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

import tiny_klein
from partcraft_lit.backbones.flux2_attention import (
    Flux2AttentionCapture,
    joint_attention_layers,
    output_similarities,
)

POSITIONS = torch.tensor([[1, 4, -1], [2, 3, 5]])
TEXT, SIDE = 7, 4
LAYERS = (
    "transformer_blocks.0.attn",
    "transformer_blocks.1.attn",
    "single_transformer_blocks.0.attn",
    "single_transformer_blocks.1.attn",
)


def inputs(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    side, length = torch.arange(SIDE), torch.arange(TEXT)
    zero = torch.zeros(1, dtype=torch.long)
    return {
        "hidden_states": torch.randn(2, SIDE * SIDE, 16, generator=generator).to(dtype),
        "encoder_hidden_states": torch.randn(2, TEXT, 48, generator=generator).to(dtype),
        "timestep": torch.tensor([0.1, 0.8], dtype=dtype),
        "img_ids": torch.cartesian_prod(zero, side, side, zero).expand(2, -1, -1),
        "txt_ids": torch.cartesian_prod(zero, zero, zero, length).expand(2, -1, -1),
    }


@pytest.fixture(scope="module")
def transformer():
    return tiny_klein.transformer()


@pytest.fixture(scope="module")
def reference(transformer):
    """Layer -> (B, heads, image, text + image) probabilities and (B, text + image, D) outputs by a full softmax."""
    import diffusers.models.transformers.transformer_flux2 as module

    seen = []
    own = module.dispatch_attention_fn

    def explicit(query, key, value, **_):
        query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
        probabilities = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(dim=-1)
        output = (probabilities @ value).transpose(1, 2)
        seen.append((probabilities[:, :, TEXT:], output.flatten(2)))
        return output

    module.dispatch_attention_fn = explicit
    try:
        with torch.no_grad():
            transformer(**inputs())
    finally:
        module.dispatch_attention_fn = own
    return dict(zip(LAYERS, seen, strict=True))


def test_layers_have_names(transformer):
    assert joint_attention_layers(transformer) == LAYERS


@pytest.mark.parametrize("layer", LAYERS)
def test_probabilities_are_columns_of_the_full_softmax(transformer, reference, layer):
    with Flux2AttentionCapture(transformer, [layer]) as capture, torch.no_grad(), capture.armed(POSITIONS):
        transformer(**inputs())
        maps = capture.maps()
    assert maps.shape == (2, 3, SIDE, SIDE) and maps.dtype == torch.float32
    expected = reference[layer][0].mean(dim=1).transpose(1, 2)  # (B, S, image)
    for row, column in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
        place = int(POSITIONS[row, column])
        wanted = expected[row, place] if place >= 0 else torch.zeros(SIDE * SIDE)
        assert_close(maps[row, column].flatten(), wanted)


@pytest.mark.parametrize("layer", LAYERS)
def test_outputs_are_compared_before_the_projection(transformer, reference, layer):
    capture = Flux2AttentionCapture(transformer, [layer], target="outputs")
    with capture, torch.no_grad(), capture.armed(POSITIONS):
        transformer(**inputs())
        maps = capture.maps()
    output = reference[layer][1]
    for row in range(2):
        places = [place for place in POSITIONS[row].tolist() if place >= 0]
        scores = torch.stack([(output[row, TEXT:] * output[row, place]).sum(dim=-1) / 32**0.5 for place in places])
        assert_close(maps[row, : len(places)].flatten(1), scores.softmax(dim=0))
        assert maps[row, len(places) :].eq(0).all()


def test_similarities_by_hand():
    image = torch.tensor([[[2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    words = torch.tensor([[[torch.tensor(3.0).log(), 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]]])
    found = output_similarities(words, image, torch.tensor([[True, True, False]]))
    assert_close(found, torch.tensor([[[0.75, 0.5], [0.25, 0.5], [0.0, 0.0]]]))
    assert output_similarities(words, image, torch.zeros(1, 3, dtype=torch.bool)).eq(0).all()


@pytest.mark.parametrize("target", ["probabilities", "outputs"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_nothing_changes_and_gradients_flow(target, checkpointing):
    transformer = copy.deepcopy(tiny_klein.transformer()).requires_grad_(False)
    if checkpointing:
        transformer.enable_gradient_checkpointing()
        transformer.train()
    given = inputs()
    text = given["encoder_hidden_states"].requires_grad_()
    plain = transformer(**given).sample
    plain.sum().backward()
    expected, text.grad = text.grad, None
    with Flux2AttentionCapture(transformer, LAYERS, target=target) as capture:
        idle = transformer(**given).sample
        with capture.armed(POSITIONS):
            armed = transformer(**given).sample
        maps = capture.maps()
        capture.clear()
        assert torch.equal(plain, idle) and torch.equal(plain, armed)
        armed.sum().backward(retain_graph=not checkpointing)
        assert torch.equal(text.grad, expected), "gradients of the prediction are those without a capture"
        with capture.armed(POSITIONS):
            transformer(**given)
        text.grad = None
        capture.maps()[:, 0].sum().backward()
        assert text.grad.abs().sum() > 0
    assert maps.shape == (2, 3, SIDE, SIDE)
    assert not transformer._forward_pre_hooks and not transformer._forward_hooks
    assert torch.equal(transformer(**given).sample, plain)


def test_half_precision_is_read_in_float32():
    transformer = tiny_klein.transformer().to(torch.bfloat16)
    with Flux2AttentionCapture(transformer, LAYERS) as capture, torch.no_grad():
        with capture.armed(torch.arange(TEXT).expand(2, TEXT)):
            transformer(**inputs(torch.bfloat16))
        assert capture.maps().dtype == torch.float32
        assert (capture.maps().sum(dim=1) < 1).all(), "the image's own keys have the rest"


def test_mistakes(transformer):
    with pytest.raises(ValueError, match="not an attention layer"):
        Flux2AttentionCapture(transformer, ["transformer_blocks.0.ff"])
    with pytest.raises(ValueError, match="at least one layer"):
        Flux2AttentionCapture(transformer, [])
    capture = Flux2AttentionCapture(transformer, LAYERS[:1])
    with capture, capture.armed(POSITIONS[:1]), pytest.raises(ValueError, match="for 1 prompts, the denoiser got 2"):
        transformer(**inputs())
    with Flux2AttentionCapture(transformer, LAYERS[:1]) as capture, pytest.raises(RuntimeError, match="No attention"):
        capture.maps()
