from __future__ import annotations

import copy

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.lora import add_lora, lora_targets, remove_lora
from partcraft_lit.core.errors import UserError


@pytest.fixture
def unet(each_fresh_backbone):
    return each_fresh_backbone.unet


def run(unet):
    generator, dtype = torch.Generator().manual_seed(0), unet.dtype
    latents = torch.randn(1, 4, 16, 16, generator=generator).to(dtype)
    text = torch.randn(1, 77, unet.config.cross_attention_dim, generator=generator).to(dtype)
    added = {"text_embeds": torch.ones(1, 24), "time_ids": torch.tensor([[32.0, 32.0, 0.0, 0.0, 32.0, 32.0]])}
    return unet(latents, torch.tensor([500]), text, added_cond_kwargs=added).sample


def lora_weights(unet):
    return {name: p.detach().clone() for name, p in unet.named_parameters() if ".lora_" in name}


def fill(parameters, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("scope", ["cross", "all"])
def test_at_the_start_nothing_changes(unet, scope):
    with torch.no_grad():
        before = run(unet)
        add_lora(unet, scope=scope)
        assert torch.equal(run(unet), before)


@pytest.mark.parametrize(("scope", "count"), [("cross", 397_824), ("all", 797_184)])
def test_counts_on_sd15(sd15_unet, scope, count):
    """From the method's reference: rank 4, by arithmetic on the released model's layers."""
    unet = copy.deepcopy(sd15_unet)
    parameters = add_lora(unet, rank=4, scope=scope)
    assert sum(parameter.numel() for parameter in parameters) == count
    assert sum(parameter.numel() for parameter in unet.parameters() if parameter.requires_grad) == count
    modules = {"cross": 16, "all": 32}[scope]
    assert len(lora_targets(sd15_unet, scope)) == modules * 4


def test_equals_the_formula(unet):
    """W x + alpha / rank * B A x, by hand on one layer."""
    name = lora_targets(unet, "cross")[0]
    weight = unet.get_submodule(name).weight.detach().clone()
    parameters = add_lora(unet, rank=2, alpha=6.0)
    fill(parameters)
    layer = unet.get_submodule(name)
    x = torch.randn(3, weight.shape[1], generator=torch.Generator().manual_seed(0))
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert_close(layer(x), x @ weight.T + 3.0 * x @ down.T @ up.T)


def test_only_the_adapter_trains_and_frozen_weights_stay_to_the_bit(unet):
    before = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    unet.requires_grad_(True)
    parameters = add_lora(unet)
    trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert {id(p) for p in trainable} == {id(p) for p in parameters}
    optimizer = torch.optim.AdamW(parameters, lr=0.1)
    for _ in range(2):
        run(unet).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    after = {name.replace(".base_layer", ""): tensor for name, tensor in unet.state_dict().items()}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.abs().max() > 0 for parameter in parameters), "the up projections moved away from zero"


def test_start_depends_on_the_seed_and_on_nothing_else(fresh_backbone):
    states = []
    for seed, noise in ((0, 1), (0, 2), (1, 2)):
        unet = copy.deepcopy(fresh_backbone.unet)
        torch.manual_seed(noise)
        add_lora(unet, rank=4, scope="all", seed=seed)
        states.append(lora_weights(unet))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    downs = [name for name in states[0] if "lora_A" in name]
    assert not any(torch.equal(states[0][name], states[2][name]) for name in downs)
    spread = torch.cat([states[0][name].flatten() for name in downs]).std()
    assert_close(spread, torch.tensor(1 / 4), rtol=0.1, atol=0)


def test_scopes_share_the_start_of_what_they_share(fresh_backbone):
    """So that an ablation over the scope is paired."""
    one, other = copy.deepcopy(fresh_backbone.unet), fresh_backbone.unet
    add_lora(one, scope="cross")
    add_lora(other, scope="all")
    wide = lora_weights(other)
    assert all(torch.equal(wide[name], tensor) for name, tensor in lora_weights(one).items())


def test_adapter_is_float32_in_a_half_precision_unet(unet):
    unet.to(torch.bfloat16)
    parameters = add_lora(unet)
    assert {parameter.dtype for parameter in parameters} == {torch.float32}
    fill(parameters)
    output = run(unet)
    assert output.dtype == torch.bfloat16
    output.float().sum().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in parameters)


def test_remove_gives_the_unet_back(unet):
    names = list(unet.state_dict())
    with torch.no_grad():
        before = run(unet)
        fill(add_lora(unet))
        assert not torch.equal(run(unet), before)
        remove_lora(unet)
        remove_lora(unet)
        assert torch.equal(run(unet), before)
    assert list(unet.state_dict()) == names
    add_lora(unet)


def test_messages(unet):
    with pytest.raises(UserError, match=r"lora\.rank=0"):
        add_lora(unet, rank=0)
    with pytest.raises(UserError, match=r"lora\.alpha=-1"):
        add_lora(unet, alpha=-1)
    with pytest.raises(UserError, match=r"lora\.scope='mid'"):
        add_lora(unet, scope="mid")
    add_lora(unet)
    with pytest.raises(ValueError, match="already has a LoRA adapter"):
        add_lora(unet)
