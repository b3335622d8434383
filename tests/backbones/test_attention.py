from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.attention import AttentionCapture, cross_attention_sides, token_probabilities
from partcraft_lit.backbones.lora import add_lora

POSITIONS = torch.tensor([[1, 4, -1], [2, 3, 5]])


def inputs_for(unet):
    """Arguments of a forward pass; what a kind does not take, it passes by."""
    generator = torch.Generator().manual_seed(0)
    return {
        "sample": torch.randn(2, 4, 16, 16, generator=generator),
        "timestep": torch.tensor([10, 700]),
        "encoder_hidden_states": torch.randn(2, 77, unet.config.cross_attention_dim, generator=generator),
        "added_cond_kwargs": {"text_embeds": torch.ones(2, 24), "time_ids": torch.full((2, 6), 32.0)},
    }


@pytest.fixture
def inputs(tiny_backbone):
    return inputs_for(tiny_backbone.unet)


def reference_maps(unet, layer_names, inputs):
    """(layers, B, 77, places): what diffusers' eager attention computes, read from its own helper."""
    from diffusers.models.attention_processor import Attention, AttnProcessor

    seen = []

    class Recorder(AttnProcessor):
        def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
            query = attn.head_to_batch_dim(attn.to_q(hidden_states))
            key = attn.head_to_batch_dim(attn.to_k(encoder_hidden_states))
            scores = attn.get_attention_scores(query, key)  # (B * heads, places, 77)
            seen.append(scores.unflatten(0, (-1, attn.heads)).mean(dim=1).transpose(1, 2))
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, temb)

    layers = [unet.get_submodule(name) for name in layer_names]
    own = [layer.processor for layer in layers]
    for layer in layers:
        layer.set_processor(Recorder())
    with torch.no_grad():
        unet(**inputs)
    for layer, processor in zip(layers, own):
        layer.set_processor(processor)
    return torch.stack(seen)


@pytest.mark.parametrize("autocast", [False, True])
def test_outputs_are_equal_to_the_bit_with_capture_off_and_on(each_fresh_backbone, autocast):
    fresh_backbone, unet = each_fresh_backbone, each_fresh_backbone.unet
    inputs = inputs_for(unet)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = unet(**inputs).sample
        with AttentionCapture(unet, fresh_backbone.attention_layers) as capture:
            idle = unet(**inputs).sample
            with capture.armed(POSITIONS):
                armed = unet(**inputs).sample
            assert capture.maps().dtype == torch.float32
        removed = unet(**inputs).sample
    assert torch.equal(idle, armed)
    assert torch.equal(plain, removed)
    if autocast:  # made from probabilities in float32, which are read
        assert_close(plain, idle, atol=0.03, rtol=0.03)
    else:
        assert torch.equal(plain, idle)


def test_a_layer_with_every_feature_of_attention_is_equal_to_the_bit():
    """Norms, biases, masks, residuals and 4-D inputs, which Stable Diffusion's cross-attention does not use."""
    from diffusers.models.attention_processor import Attention, AttnProcessor2_0

    torch.manual_seed(0)
    block = torch.nn.Module()
    block.attn2 = Attention(
        query_dim=8, cross_attention_dim=6, heads=2, dim_head=4, bias=True, norm_num_groups=2, residual_connection=True,
        rescale_output_factor=1.5, qk_norm="layer_norm", cross_attention_norm="layer_norm",
    )  # fmt: skip
    hidden, context = torch.randn(3, 8, 4, 4), torch.randn(3, 5, 6)
    mask = torch.randn(3, 1, 5)
    assert isinstance(block.attn2.processor, AttnProcessor2_0)
    plain = block.attn2(hidden, context, attention_mask=mask)
    capture = AttentionCapture(block, ["attn2"])
    with capture.armed(torch.arange(5).expand(3, 5)):
        assert torch.equal(block.attn2(hidden, context, attention_mask=mask), plain)
    assert_close(capture.maps().sum(dim=1), torch.ones(3, 4, 4))
    with capture.armed(torch.arange(5).expand(3, 5)):
        block.attn2(hidden, context, attention_mask=mask - 1e4 * (torch.arange(5) == 2))
    assert capture.maps()[:, 2].max() == 0, "a masked token gets no attention"


def test_maps_equal_eager_attention(each_backbone):
    tiny_backbone, inputs, side = each_backbone, inputs_for(each_backbone.unet), each_backbone.attention_size
    expected = reference_maps(tiny_backbone.unet, tiny_backbone.attention_layers, inputs)
    with AttentionCapture(tiny_backbone.unet, tiny_backbone.attention_layers) as capture, torch.no_grad():
        with capture.armed(POSITIONS):
            tiny_backbone.unet(**inputs)
        maps = capture.maps()
    assert maps.shape == (2, 3, side, side)
    mean = expected.mean(dim=0).unflatten(2, (side, side))
    for row in range(2):
        for column in range(3):
            place = int(POSITIONS[row, column])
            wanted = mean[row, place] if place >= 0 else torch.zeros(side, side)
            assert_close(maps[row, column], wanted)


def test_all_columns_sum_to_one(tiny_backbone, inputs):
    with AttentionCapture(tiny_backbone.unet, tiny_backbone.attention_layers) as capture, torch.no_grad():
        with capture.armed(torch.arange(77).expand(2, 77)):
            tiny_backbone.unet(**inputs)
        assert_close(capture.maps().sum(dim=1), torch.ones(2, 16, 16))


def test_maps_of_other_sizes_are_resized_and_averaged(tiny_backbone, inputs):
    sides = cross_attention_sides(tiny_backbone.unet, 16)
    assert sorted(set(sides.values())) == [8, 16]
    everything = torch.arange(77).expand(2, 77)
    with AttentionCapture(tiny_backbone.unet, list(sides), size=8) as capture, torch.no_grad():
        with capture.armed(everything):
            tiny_backbone.unet(**inputs)
        layers, maps = capture.layer_maps(), capture.maps()
        assert {name: layer.shape[-1] for name, layer in layers.items()} == sides
        pooled = [
            layer if side == 8 else layer.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean(dim=(3, 5))
            for layer, side in zip(layers.values(), sides.values())
        ]
        assert_close(maps, torch.stack(pooled).mean(dim=0))
        capture.size = 16
        assert_close(capture.maps().sum(dim=1), torch.ones(2, 16, 16))


def gradients(unet, capture, inputs, batches, checkpointing):
    """Gradients with respect to the text of a loss on maps and outputs; every forward comes before the backward."""
    (unet.enable_gradient_checkpointing if checkpointing else unet.disable_gradient_checkpointing)()
    text = inputs["encoder_hidden_states"].clone().requires_grad_()
    total = torch.zeros(())
    for number, positions in enumerate(batches):
        with capture.armed(positions):
            output = unet(**{**inputs, "sample": inputs["sample"] + number, "encoder_hidden_states": text}).sample
        total = total + capture.maps().square().sum() + 0.01 * output.square().mean()
    capture.clear()
    total.backward()
    return text.grad


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_under_checkpointing_though_backward_runs_unarmed(each_fresh_backbone, autocast):
    fresh_backbone, unet = each_fresh_backbone, each_fresh_backbone.unet
    inputs = inputs_for(unet)
    add_lora(unet)
    capture = AttentionCapture(unet, fresh_backbone.attention_layers)
    batches = [POSITIONS, POSITIONS.flip(0)]  # two forwards with other places, one backward
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        plain = gradients(unet, capture, inputs, batches, checkpointing=False)
    lora = [p.grad.clone() for p in unet.parameters() if p.requires_grad]
    unet.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_close(gradients(unet, capture, inputs, batches, checkpointing=True), plain)
    assert_close([p.grad for p in unet.parameters() if p.requires_grad], lora)
    assert plain[0, [1, 4]].abs().sum() > 0


def test_gradients_reach_part_vectors_through_maps_alone(fresh_backbone, inputs, make_tokens):
    from partcraft_lit.core.types import PartToken

    tokens = make_tokens([["a photo of", PartToken(1, 0)], [PartToken(2, 1), "bird", PartToken(0, 0)]])
    vectors = torch.randn(2, 2, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    conditioning = fresh_backbone.encode_prompts(tokens, vectors)
    with AttentionCapture(fresh_backbone.unet, fresh_backbone.attention_layers) as capture:
        with capture.armed(tokens.part_positions):
            fresh_backbone.denoise(inputs["sample"], inputs["timestep"], conditioning)
        capture.maps().square().sum().backward()
    norms = vectors.grad.norm(dim=-1)
    assert (norms[tokens.part_positions >= 0] > 0).all()
    assert norms[0, 1] == 0, "an unused place"


def test_gradient_of_probabilities_is_right():
    query, key = (torch.randn(1, 2, n, 3, dtype=torch.double).requires_grad_() for n in (4, 5))
    positions = torch.tensor([[2, -1, 0]])
    # the function works in float32, so the tolerance is that of float32 differences
    assert torch.autograd.gradcheck(
        lambda q, k: token_probabilities(q, k, None, positions).double(), (query, key), eps=1e-2, atol=1e-3, rtol=1e-2
    )


def test_works_with_lora_added_before_or_after(fresh_backbone, inputs):
    unet = fresh_backbone.unet
    with AttentionCapture(unet, fresh_backbone.attention_layers) as capture, torch.no_grad():
        add_lora(unet)
        for parameter in unet.parameters():
            if parameter.requires_grad:
                parameter.fill_(0.05)
        with capture.armed(torch.arange(77).expand(2, 77)):
            unet(**inputs)
        maps = capture.maps()
    expected = reference_maps(unet, fresh_backbone.attention_layers, inputs).mean(dim=0)
    assert_close(maps, expected.unflatten(2, (16, 16)))


def test_remove_puts_the_very_processors_back_and_others_are_never_touched(fresh_backbone):
    unet = fresh_backbone.unet
    before = dict(unet.attn_processors)
    capture = AttentionCapture(unet, fresh_backbone.attention_layers)
    changed = {name for name, processor in unet.attn_processors.items() if processor is not before[name]}
    assert changed == {f"{name}.processor" for name in fresh_backbone.attention_layers}
    capture.remove()
    capture.remove()
    assert all(processor is before[name] for name, processor in unet.attn_processors.items())


def test_a_graph_that_never_runs_backward_is_freed_at_once(monkeypatch):
    """A reference cycle would keep it until the garbage collector runs, which is long for a GPU's memory."""
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks

    def spy(pack, unpack):
        def remember(tensor):
            packed = pack(tensor)
            kept.append(weakref.ref(packed))
            return packed

        return hooks(remember, unpack)

    monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", spy)
    query, key = (torch.randn(1, 2, n, 3, requires_grad=True) for n in (4, 5))
    gc.disable()
    try:
        maps = token_probabilities(query * 1, key * 1, None, torch.tensor([[2]]))
        assert kept
        assert all(reference() is not None for reference in kept)
        del maps
        assert all(reference() is None for reference in kept)
    finally:
        gc.enable()


def test_messages(fresh_backbone, inputs):
    unet, layers = fresh_backbone.unet, fresh_backbone.attention_layers
    before = dict(unet.attn_processors)
    with pytest.raises(ValueError, match=r"'mid_block\.attn9' is not an attention layer"):
        AttentionCapture(unet, [*layers, "mid_block.attn9"])
    assert unet.attn_processors == before, "a refusal changes nothing"
    with pytest.raises(ValueError, match="is not an attention layer"):
        AttentionCapture(unet, ["conv_in"])
    with pytest.raises(ValueError, match="at least one layer name"):
        AttentionCapture(unet, [])
    with AttentionCapture(unet, layers) as capture:
        with pytest.raises(RuntimeError, match="No attention was captured"):
            capture.maps()
        with pytest.raises(ValueError, match="for 3 prompts, the UNet got 2"), capture.armed(torch.zeros(3, 1).long()):
            unet(**inputs)
    with pytest.raises(ValueError, match="must be square, got 8 pixels"):
        token_probabilities(torch.zeros(1, 1, 8, 2), torch.zeros(1, 1, 5, 2), None, torch.zeros(1, 1).long())


def test_an_error_in_the_forward_disarms(fresh_backbone, inputs):
    with AttentionCapture(fresh_backbone.unet, fresh_backbone.attention_layers) as capture, torch.no_grad():
        with pytest.raises(RuntimeError, match="stop"), capture.armed(POSITIONS):
            raise RuntimeError("stop")
        fresh_backbone.unet(**inputs)
        with pytest.raises(RuntimeError, match="No attention was captured"):
            capture.maps()


@pytest.mark.parametrize("latent_size", [16, 12])
def test_sides_are_those_of_a_real_forward(tiny_backbone, latent_size):
    sides = cross_attention_sides(tiny_backbone.unet, latent_size)
    assert sides == probed_sides(tiny_backbone.unet, latent_size, device="cpu")


def probed_sides(unet, latent_size, device):
    """Sides as the layers meet them in a forward pass."""
    sides, handles = {}, []

    def hook(name):
        return lambda module, args: sides.__setitem__(name, int(args[0].shape[1] ** 0.5))

    for name, module in unet.named_modules():
        if name.endswith("attn2"):
            handles.append(module.register_forward_pre_hook(hook(name)))
    with torch.no_grad(), torch.device(device):
        context = torch.zeros(1, 77, unet.config.cross_attention_dim)
        unet(torch.zeros(1, 4, latent_size, latent_size), torch.zeros(1, dtype=torch.long), context)
    for handle in handles:
        handle.remove()
    return sides
