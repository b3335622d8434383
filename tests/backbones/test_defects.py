"""Mistakes that the published implementation of the method makes, each as a law that it would break."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.attention import AttentionCapture, token_probabilities
from partcraft_lit.backbones.text import overwrite_positions
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.tokenize import tokenize

VOCABULARY = PartVocabulary(("background", "head", "wing"), (3, 3, 3))


@pytest.fixture
def read(each_backbone):
    return lambda *prompts: tokenize(prompts, VOCABULARY, each_backbone.tokenizers)


def vectors_for(backbone, tokens):
    shape = (*tokens.part_positions.shape, sum(backbone.token_widths))
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_a_part_may_stand_in_a_training_prompt_twice(each_backbone, read):
    """There it is an error. Here each occurrence has its own vector and its own map, and both train."""
    tokens = read("a photo of a <head:0> <wing:1> <head:1> bird", "<wing:2> <head:2> <wing:0>")
    vectors = vectors_for(each_backbone, tokens).requires_grad_()
    conditioning = each_backbone.encode_prompts(tokens, vectors)
    with AttentionCapture(each_backbone.unet, each_backbone.attention_layers) as capture:
        with capture.armed(tokens.part_positions):
            each_backbone.denoise(torch.randn(2, 4, 16, 16), torch.tensor([10, 700]), conditioning)
        maps = capture.maps()
    labels = torch.randint(3, (2, *maps.shape[-2:])).byte()
    loss = entropy_attention_loss(maps, tokens.part_ids, labels, 2)
    assert loss.shape == (2,) and loss.isfinite().all()
    loss.sum().backward()
    assert (vectors.grad.norm(dim=-1) > 0)[tokens.part_positions >= 0].all()
    swapped = each_backbone.encode_prompts(tokens, vectors.detach()[:, [1, 0, 2]])
    assert not torch.equal(swapped.encoder_hidden_states, conditioning.encoder_hidden_states), "order decides"


def test_no_id_is_new_to_the_encoders_and_the_end_of_the_text_stays_the_largest(each_backbone, read):
    """There, part tokens are registered behind the end's id, and the pooled text is read at the last of them."""
    tokens = read("a <head:0> bird <wing:2>")
    for ids, tokenizer, encoder in zip(tokens.input_ids, each_backbone.tokenizers, each_backbone.text_encoders):
        assert int(ids.max()) == tokenizer.eos_token_id < encoder.get_input_embeddings().num_embeddings
        assert int(ids[0].argmax()) == 5, "start, a, head, bird, wing, end"
        held = ids[0, tokens.part_positions[0]]
        assert not set(held.tolist()) & set(tokenizer.all_special_ids), "neither padding nor an end"


def test_what_stands_at_a_part_token_s_place_does_not_matter(each_backbone, read):
    tokens = read("a <head:0> bird <wing:2>")
    vectors = vectors_for(each_backbone, tokens)
    before = each_backbone.encode_prompts(tokens, vectors)
    for ids in tokens.input_ids:
        ids[0, tokens.part_positions[0]] = 7
    after = each_backbone.encode_prompts(tokens, vectors)
    assert torch.equal(before.encoder_hidden_states, after.encoder_hidden_states)
    if before.pooled_prompt_embeds is not None:
        assert torch.equal(before.pooled_prompt_embeds, after.pooled_prompt_embeds)


def test_nothing_waits_for_the_device():
    """There, loops over tokens ask the device about each. Tensors without values cannot answer: what waits, fails."""
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode():
        positions = torch.zeros(2, 3, dtype=torch.long)
        with pytest.raises(DataDependentOutputException):
            positions[0, 0].item()
        assert overwrite_positions(torch.zeros(2, 77, 8), positions, torch.zeros(2, 3, 8)).shape == (2, 77, 8)
        query, key = torch.zeros(2, 4, 256, 8), torch.zeros(2, 4, 77, 8)
        assert token_probabilities(query, key, None, positions).shape == (2, 3, 16, 16)


def test_attention_is_read_in_float32_whatever_the_step_runs_in():
    """There it is read in half precision, where the loss's 1e-6 is next to nothing."""
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(1, 2, 4, 8, generator=generator), torch.randn(1, 2, 5, 8, generator=generator)
    positions = torch.tensor([[1, 3]])
    halves = token_probabilities(query.bfloat16(), key.bfloat16(), None, positions)
    with torch.autocast("cpu", torch.bfloat16):
        inside = token_probabilities(query.bfloat16(), key.bfloat16(), None, positions)
    exact = token_probabilities(query.bfloat16().float(), key.bfloat16().float(), None, positions)
    assert halves.dtype == inside.dtype == torch.float32
    assert torch.equal(halves, exact) and torch.equal(inside, exact)
    assert_close(exact, token_probabilities(query, key, None, positions), atol=2e-2, rtol=5e-2)
