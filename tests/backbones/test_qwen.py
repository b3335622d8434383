from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

import tiny_klein
from partcraft_lit.backbones.qwen import chat_format, encode_qwen, keep_read_layers
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import PartToken

HEAD, WING = PartToken(1, 3), PartToken(2, 0, weight=1.5)
PLAIN = [["a photo of a red bird"], [""], ["a striped robot with the head of a cat"]]
PARTS = [["a photo of a ", HEAD, " ", WING, " bird"], ["blurry"], [HEAD, ", a robot"]]


@pytest.fixture(scope="module")
def encoder():
    return tiny_klein.text_encoder()


@pytest.fixture(scope="module")
def text_format():
    return chat_format(tiny_klein.tokenizer(), max_length=64)


def encode(encoder, tokens, vectors=None):
    return encode_qwen(
        encoder, tokens.input_ids[0], tokens.attention_mask, tokens.part_positions, vectors, tiny_klein.LAYERS
    )


def words_of(tokens, row):
    ids = tokens.input_ids[0][row][tokens.attention_mask[row].bool()]
    return tiny_klein.tokenizer().convert_ids_to_tokens(ids.tolist())


def test_plain_prompts_are_read_as_the_pipeline_reads_them(encoder, text_format):
    from diffusers import Flux2KleinPipeline

    tokens = text_format(PLAIN)
    assert tokens.part_positions.shape == (3, 0)
    with torch.no_grad():
        expected = Flux2KleinPipeline._get_qwen3_prompt_embeds(
            encoder,
            tiny_klein.tokenizer(),
            [prompt for (prompt,) in PLAIN],
            max_sequence_length=64,
            hidden_states_layers=tiny_klein.LAYERS,
        )
        assert torch.equal(encode(encoder, tokens), expected)


def test_part_tokens_take_one_position_each(text_format):
    tokens = text_format(PARTS)
    asked = ["<|im_start|>", "user", "Ċ", "a", "Ġphoto", "Ġof", "Ġa", "!", "!", "Ġbird", "<|im_end|>", "Ċ"]
    answer = ["<|im_start|>", "assistant", "Ċ", "<think>", "ĊĊ", "</think>", "ĊĊ"]
    assert [word for word in words_of(tokens, 0) if word != "Ċ"][:9] == [word for word in asked if word != "Ċ"][:9]
    assert [w for w in words_of(tokens, 0) if "Ċ" not in w] == [w for w in [*asked, *answer] if "Ċ" not in w]
    assert tokens.part_positions.tolist() == [[7, 8], [-1, -1], [3, -1]]
    assert tokens.part_ids.tolist() == [[1, 2], [-1, -1], [1, -1]]
    assert tokens.code_ids.tolist() == [[3, 0], [-1, -1], [3, -1]]
    assert tokens.part_weights.tolist() == [[1.0, 1.5], [1.0, 1.0], [1.0, 1.0]]
    assert text_format([["a ", HEAD]]).part_weights is None


def test_a_filled_place_is_that_word_in_the_text(text_format):
    filled, written = text_format(PARTS, fill="dog"), text_format([["a photo of a dog dog bird"], ["blurry"]])
    assert torch.equal(filled.input_ids[0][:2], written.input_ids[0])
    assert words_of(filled, 0)[7] == "Ġdog"


def test_long_prompts_are_refused(text_format):
    room = 64 - len(words_of(text_format([[""]]), 0))
    text_format([["bird " * (room - 1) + "bird"]])
    with pytest.raises(UserError, match=r"takes 66 positions .* has 64: .*Shorten it by 2"):
        text_format([["a ", HEAD, " bird" * room]])


def test_the_format_is_picklable(text_format):
    again = pickle.loads(pickle.dumps(text_format))
    assert torch.equal(again(PARTS).input_ids[0], text_format(PARTS).input_ids[0])


def test_words_of_several_tokens(text_format):
    assert tiny_klein.tokenizer().convert_ids_to_tokens([text_format.word_id("dog")]) == ["Ġdog"]
    with pytest.raises(UserError, match=r"'zebra' is . tokens to this model"):
        text_format.word_id("zebra")


def test_a_tokenizer_without_a_template_is_explained():
    bare = copy.deepcopy(tiny_klein.tokenizer())
    bare.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        chat_format(bare)


def test_layers_that_nobody_reads_are_dropped(encoder, text_format):
    small = copy.deepcopy(encoder)
    keep_read_layers(small, tiny_klein.LAYERS)
    assert len(small.model.layers) == 4 < len(encoder.model.layers)
    with torch.no_grad():
        assert torch.equal(encode(small, text_format(PLAIN)), encode(encoder, text_format(PLAIN)))


def test_a_small_encoder_is_refused(encoder):
    with pytest.raises(UserError, match=r"reads layers 9, 18, 27 .* this one has 5.*Qwen3"):
        keep_read_layers(encoder, (9, 18, 27))


def test_a_vector_is_read_as_a_word(encoder, text_format):
    """The vectors of a word give what the word gives."""
    tokens = text_format(PARTS)
    table = encoder.get_input_embeddings().weight
    dog, cat = (text_format.word_id(word) for word in ("dog", "cat"))
    vectors = torch.zeros(3, 2, 16)
    vectors[0, 0], vectors[0, 1], vectors[2, 0] = table[dog].detach(), table[cat].detach(), table[dog].detach()
    written = copy.deepcopy(tokens)
    written.input_ids[0][[0, 0, 2], [7, 8, 3]] = torch.tensor([dog, cat, dog])
    with torch.no_grad():
        assert torch.equal(encode(encoder, tokens, vectors), encode(encoder, written))


def test_gradients_reach_the_vectors(encoder, text_format):
    tokens = text_format(PARTS)
    vectors = torch.randn(3, 2, 16, requires_grad=True)
    encode(copy.deepcopy(encoder).requires_grad_(False), tokens, vectors).square().sum().backward()
    assert (vectors.grad.abs().sum(dim=-1) > 0).tolist() == (tokens.part_positions >= 0).tolist()


def test_padding_is_not_read(encoder, text_format):
    tokens = text_format(PLAIN)
    length = int(tokens.attention_mask[0].sum())
    with torch.no_grad():
        long = encode(encoder, tokens)[0, :length]
        short = chat_format(tiny_klein.tokenizer(), max_length=length)(PLAIN[:1])
        assert_close(encode(encoder, short)[0], long)
