from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.backbones.text import encode_text, overwrite_positions, plain_tokens
from partcraft_lit.core.types import PartToken

HEAD, WING = PartToken(1, 3), PartToken(2, 0)


@pytest.fixture
def encoder(tiny_backbone):
    return tiny_backbone.text_encoders[0]


def vectors_for(tokens, seed=0):
    shape = (*tokens.part_positions.shape, 32)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_overwrite_by_hand():
    embeddings = torch.zeros(2, 4, 2)
    positions = torch.tensor([[3, 0], [-1, 2]])
    vectors = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[9.0, 9.0], [5.0, 6.0]]])
    expected = torch.tensor([[[3, 4], [0, 0], [0, 0], [1, 2]], [[0, 0], [0, 0], [5, 6], [0, 0]]]).float()
    assert torch.equal(overwrite_positions(embeddings, positions, vectors), expected)
    assert torch.equal(embeddings, torch.zeros(2, 4, 2)), "a new tensor"


def test_overwrite_gradients_go_where_the_values_were_used():
    embeddings = torch.randn(2, 5, 3, dtype=torch.double, requires_grad=True)
    vectors = torch.randn(2, 2, 3, dtype=torch.double, requires_grad=True)
    positions = torch.tensor([[4, 1], [0, -1]])
    assert torch.autograd.gradcheck(lambda e, v: overwrite_positions(e, positions, v), (embeddings, vectors))
    overwrite_positions(embeddings, positions, vectors).sum().backward()
    assert vectors.grad[:, :, 0].tolist() == [[1, 1], [1, 0]]
    assert embeddings.grad[:, :, 0].tolist() == [[1, 0, 1, 1, 0], [0, 1, 1, 1, 1]]


def test_overwrite_takes_the_type_of_the_embeddings():
    out = overwrite_positions(torch.zeros(1, 3, 2, dtype=torch.bfloat16), torch.tensor([[1]]), torch.ones(1, 1, 2))
    assert out.dtype == torch.bfloat16


def test_plain_prompts_equal_the_plain_encoder(encoder, tiny_tokenizer):
    prompts = ["a photo of a bird", "", "a dark picture of the striped robot"]
    tokens = plain_tokens([tiny_tokenizer], prompts)
    ids = tiny_tokenizer(prompts, padding="max_length", max_length=77, return_tensors="pt").input_ids
    assert torch.equal(tokens.input_ids[0], ids)
    assert tokens.part_positions.shape == (3, 0)
    with torch.no_grad():
        expected = encoder(ids)
        for vectors in (None, torch.zeros(3, 0, 32)):
            output = encode_text(encoder, tokens.input_ids[0], tokens.part_positions, vectors)
            assert torch.equal(output.last_hidden_state, expected.last_hidden_state)
            assert torch.equal(output.pooler_output, expected.pooler_output)


def test_a_word_s_own_embedding_as_part_vector_changes_nothing(encoder, tiny_tokenizer, make_tokens):
    """The law that fixes place, order and position embeddings at once."""
    tokens = make_tokens([["a photo of a", HEAD, "bird", WING], [WING, "dog"]])
    table = encoder.get_input_embeddings().weight
    red, green = (table[tiny_tokenizer.convert_tokens_to_ids(word)] for word in ("red</w>", "green</w>"))
    vectors = torch.stack([torch.stack([red, green]), torch.stack([green, torch.full_like(red, 1e6)])])
    plain = plain_tokens([tiny_tokenizer], ["a photo of a red bird green", "green dog"])
    with torch.no_grad():
        ours = encode_text(encoder, tokens.input_ids[0], tokens.part_positions, vectors)
        words = encoder(plain.input_ids[0])
    assert torch.equal(ours.last_hidden_state, words.last_hidden_state)
    assert torch.equal(ours.pooler_output, words.pooler_output)


def test_attention_stays_causal_and_pooled_is_read_at_the_end_of_the_text(encoder, make_tokens):
    tokens = make_tokens([["a photo of", HEAD, "bird"]])
    place, end = int(tokens.part_positions[0, 0]), 6
    assert int(tokens.input_ids[0][0, end]) == encoder.config.eos_token_id
    with torch.no_grad():
        one, other = (
            encode_text(encoder, tokens.input_ids[0], tokens.part_positions, vectors_for(tokens, seed))
            for seed in (0, 1)
        )
    same = (one.last_hidden_state == other.last_hidden_state).all(dim=-1)[0]
    assert same[:place].all()
    assert not same[place:].any()
    assert_close(one.pooler_output, one.last_hidden_state[:, end])


def test_gradients_reach_vectors_and_no_weight(encoder, make_tokens):
    tokens = make_tokens([["a", HEAD, WING], ["a bird"]])
    vectors = vectors_for(tokens).requires_grad_()
    encode_text(
        encoder, tokens.input_ids[0], tokens.part_positions, vectors
    ).last_hidden_state.square().sum().backward()
    assert (vectors.grad[0].norm(dim=-1) > 0).all()
    assert vectors.grad[1].abs().max() == 0
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_hook_is_gone_afterwards_also_after_an_error(encoder, make_tokens):
    tokens = make_tokens([["a", HEAD]])
    with pytest.raises(ValueError, match=r"part vectors must be \(B, T, D\)"):
        encode_text(encoder, tokens.input_ids[0], tokens.part_positions, torch.zeros(1, 2, 32))
    assert not encoder.get_input_embeddings()._forward_hooks


def test_part_tokens_without_vectors_are_an_error(encoder, make_tokens):
    tokens = make_tokens([["a", HEAD]])
    with pytest.raises(ValueError, match="vectors are needed"):
        encode_text(encoder, tokens.input_ids[0], tokens.part_positions, None)
    unused = torch.full_like(tokens.part_positions, -1)
    assert encode_text(encoder, tokens.input_ids[0], unused, None).last_hidden_state.shape == (1, 77, 32)


def test_works_with_the_encoder_of_sdxl(tiny_tokenizer, make_tokens):
    """CLIPTextModelWithProjection: pooled output and earlier layers, with part tokens."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, projection_dim=16, bos_token_id=tiny_tokenizer.bos_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    encoder = CLIPTextModelWithProjection(config).eval()
    tokens = make_tokens([["a", HEAD, "bird"]])
    output = encode_text(encoder, tokens.input_ids[0], tokens.part_positions, vectors_for(tokens), True)
    assert output.text_embeds.shape == (1, 16)
    assert len(output.hidden_states) == 3
    assert_close(output.text_embeds, encoder.text_projection(output.last_hidden_state[:, 4]))
