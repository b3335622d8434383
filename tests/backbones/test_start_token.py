from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.attention import AttentionCapture
from partcraft_lit.backbones.start_token import detach_start_token


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": torch.tensor([10, 700]),
        "encoder_hidden_states": torch.randn(2, 77, 32, generator=generator),
    }


def projections(unet):
    return {n: p for n, p in unet.named_parameters() if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}


def test_outputs_are_equal_to_the_bit_and_the_hooks_can_go(fresh_backbone, inputs):
    unet = fresh_backbone.unet
    with torch.no_grad():
        plain = unet(**inputs).sample
        handles = detach_start_token(unet)
        assert torch.equal(unet(**inputs).sample, plain)
    assert len(handles) == len(projections(unet)) == 2 * sum(n.endswith("attn2") for n, _ in unet.named_modules())
    for handle in handles:
        handle.remove()
    text = inputs["encoder_hidden_states"].requires_grad_()
    unet(**inputs).sample.square().mean().backward()
    assert text.grad[:, 0].abs().sum() > 0


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("captured", [False, True])
def test_no_gradient_passes_through_the_first_position(fresh_backbone, inputs, captured, checkpointing):
    unet = fresh_backbone.unet.requires_grad_(False)
    if checkpointing:
        unet.enable_gradient_checkpointing()
        unet.train()
    detach_start_token(unet)
    text = inputs["encoder_hidden_states"].requires_grad_()
    positions = torch.tensor([[0, 3], [0, 5]])
    with AttentionCapture(unet, fresh_backbone.attention_layers) as capture, capture.armed(positions):
        loss = unet(**inputs).sample.square().mean()
        if captured:
            loss = loss + capture.maps().square().mean()
        loss.backward()
    assert torch.equal(text.grad[:, 0], torch.zeros(2, 32))
    assert (text.grad[:, 1:].abs().sum(dim=-1) > 0).all()


def test_the_gradient_of_the_weights_is_that_of_the_other_positions_alone(fresh_backbone):
    """By hand for one projection: the gradient of a linear map is the sum over positions, here without the first."""
    detach_start_token(fresh_backbone.unet)
    name, weight = next(iter(projections(fresh_backbone.unet).items()))
    weight.requires_grad_(True)
    projection = fresh_backbone.unet.get_submodule(name.removesuffix(".weight"))
    states, upstream = torch.randn(2, 5, weight.shape[1]), torch.randn(2, 5, weight.shape[0])
    (projection(states) * upstream).sum().backward()
    expected = torch.einsum("blo,blw->ow", upstream[:, 1:], states[:, 1:])
    assert_close(weight.grad, expected)
