from __future__ import annotations

import pickle

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import ABSENT
from partcraft_lit.methods.method import Method
from partcraft_lit.methods.part_tokens import PartTokens
from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper

VOCABULARY = PartVocabulary(["background", "head", "wing"], [4, 5, 3])
CODES = torch.tensor([2, 4, ABSENT])


@pytest.fixture
def method(tiny_tokenizer) -> Method:
    mapper = TokenMapper(num_parts=2, num_codes=5, widths=(8,))
    return PartTokens(VOCABULARY, mapper, CaptionBuilder(VOCABULARY, class_noun="bird"), [tiny_tokenizer])


def test_from_codes_to_vectors(method):
    caption = method.make_caption(CODES, torch_generator(0))
    tokens = method.tokenize([caption, "a bird"])
    vectors = method.part_vectors(tokens)
    assert vectors.shape == (2, 2, 8)
    baked = method.bake()
    expected = baked[tokens.part_ids[0], tokens.code_ids[0]]
    assert sorted(zip(tokens.part_ids[0].tolist(), tokens.code_ids[0].tolist(), strict=True)) == [(0, 2), (1, 4)]
    assert_close(vectors[0].detach(), expected)
    assert torch.equal(vectors[1], torch.zeros(2, 8))
    assert method.plain_caption(CODES) == "a photo of a <background:2> <head:4> bird"


def test_what_trains_is_the_mapper_and_gradients_reach_it(method):
    groups = method.trainable_groups()
    assert list(groups) == ["mapper"]
    assert {id(parameter) for parameter in groups["mapper"]} == {id(parameter) for parameter in method.parameters()}
    method.part_vectors(method.tokenize(["<head:4> <background:1>"])).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in groups["mapper"])
    method.mapper.codes.requires_grad_(False)
    assert method.mapper.codes not in set(method.trainable_groups()["mapper"])


def test_workers_receive_no_weights(method):
    for part in (method.make_caption, method.tokenize):
        assert not any(isinstance(value, torch.nn.Module) for value in vars(part).values())
        pickle.loads(pickle.dumps(part))


def test_pieces_of_different_dictionaries_are_refused(tiny_tokenizer):
    captions = CaptionBuilder(VOCABULARY)
    with pytest.raises(ValueError, match="mapper is for 3 parts of 5 codes, the vocabulary has 2 parts of up to 5"):
        PartTokens(VOCABULARY, TokenMapper(3, 5, (8,)), captions, [tiny_tokenizer])
    other = PartVocabulary(["background", "head", "tail"], [4, 5, 3])
    with pytest.raises(ValueError, match="caption builder has another vocabulary"):
        PartTokens(other, TokenMapper(2, 5, (8,)), captions, [tiny_tokenizer])


def test_gradients_run_through_a_real_text_encoder_to_the_mapper(tiny_backbone):
    mapper = TokenMapper(num_parts=2, num_codes=5, widths=tiny_backbone.token_widths)
    method = PartTokens(VOCABULARY, mapper, CaptionBuilder(VOCABULARY), tiny_backbone.tokenizers)
    tokens = method.tokenize(["a photo of a <head:4>, <wing:1> bird", "a photo of a bird"])
    states = tiny_backbone.encode_prompts(tokens, method.part_vectors(tokens)).encoder_hidden_states
    states.square().sum().backward()
    rows = mapper.codes.grad.abs().sum(-1).nonzero().tolist()
    assert rows == [[1, 4], [2, 1]]
    plain = tiny_backbone.encode_prompts(method.tokenize(["a photo of a bird"]), None).encoder_hidden_states
    assert_close(states[1:].detach(), plain.detach())
