from __future__ import annotations

import pickle

import pytest
import torch
from transformers import CLIPTokenizer

from partcraft_lit.core.errors import UserError
from partcraft_lit.tokens.captions import TEMPLATES
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.tokenize import PromptTokenizer, placeholder_id, tokenize

VOCABULARY = PartVocabulary(["background", "head", "left-wing"], [4, 20, 20])


@pytest.fixture(scope="module")
def exclaiming(tiny_tokenizer, tmp_path_factory) -> CLIPTokenizer:
    """The same text ids with another padding, as the second tokenizer of SDXL."""
    folder = tmp_path_factory.mktemp("exclaiming")
    tiny_tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder, pad_token="!")


def places(tokens, row):
    return [position for position in tokens.part_positions[row].tolist() if position >= 0]


@pytest.mark.parametrize(
    "prompt",
    ["", "a photo of a bird", "A  Photo,of a\n(red) bird's HEAD!! 12:30", "héllo ☃ naïve", *TEMPLATES[:5], " x " * 30],
)
def test_text_alone_is_tokenized_as_clip_does(prompt, tiny_tokenizer):
    expected = tiny_tokenizer([prompt], padding="max_length", max_length=77, return_tensors="pt").input_ids
    tokens = tokenize([prompt], VOCABULARY, [tiny_tokenizer])
    assert torch.equal(tokens.input_ids[0], expected)
    assert tokens.part_positions.shape == tokens.part_ids.shape == tokens.code_ids.shape == (1, 0)


def test_part_tokens_take_one_place_each(tiny_tokenizer):
    tokens = tokenize(["a photo of a <head:17>, <2:5> bird", "bird <head:3>"], VOCABULARY, [tiny_tokenizer])
    assert tokens.part_positions.tolist() == [[5, 7], [2, -1]]  # start a photo of a HEAD , WING bird end
    assert tokens.part_ids.tolist() == [[1, 2], [1, -1]]
    assert tokens.code_ids.tolist() == [[17, 5], [3, -1]]
    assert {tensor.dtype for tensor in (tokens.part_positions, tokens.part_ids, tokens.code_ids)} == {torch.int64}


def test_the_ids_around_part_tokens_are_those_of_any_other_word(tiny_tokenizer):
    prompt = "a photo of a <head:17>, <left-wing:5> bird"
    tokens = tokenize([prompt], VOCABULARY, [tiny_tokenizer])
    blank = placeholder_id(tiny_tokenizer)
    plain = "a photo of a red, blue bird"
    expected = tiny_tokenizer([plain], padding="max_length", max_length=77, return_tensors="pt").input_ids
    expected[0, [5, 7]] = blank
    assert torch.equal(tokens.input_ids[0], expected)


def test_a_part_token_splits_a_word_as_a_space_would(tiny_tokenizer):
    glued, spaced = tokenize(
        ["red<head:1>bird<1:2>", "red <head:1> bird <1:2>"], VOCABULARY, [tiny_tokenizer]
    ).input_ids[0]
    assert torch.equal(glued, spaced)


def test_two_tokens_of_one_part_are_kept_in_order(tiny_tokenizer):
    tokens = tokenize(["<head:17> <head:18>"], VOCABULARY, [tiny_tokenizer])
    assert tokens.part_ids.tolist() == [[1, 1]]
    assert tokens.code_ids.tolist() == [[17, 18]]


def test_placeholder_is_harmless(tiny_tokenizer, exclaiming):
    for tokenizer in (tiny_tokenizer, exclaiming):
        blank = placeholder_id(tokenizer)
        assert 0 <= blank < len(tokenizer)
        assert blank not in tokenizer.all_special_ids
    tokens = tokenize(["<head:1> <head:2>"], VOCABULARY, [tiny_tokenizer])
    assert (
        int(tokens.input_ids[0][0].argmax()) == 3
    )  # start, two tokens, end: older CLIP models look for the largest id
    assert int((tokens.input_ids[0][0] == tiny_tokenizer.eos_token_id).int().argmax()) == 3


def test_all_tokenizers_share_the_places_and_keep_their_own_padding(tiny_tokenizer, exclaiming):
    tokens = tokenize(["a <head:1> bird"], VOCABULARY, [tiny_tokenizer, exclaiming])
    first, second = tokens.input_ids
    assert first.shape == second.shape == (1, 77)
    assert torch.equal(first[0, [0, 1, 3, 4]], second[0, [0, 1, 3, 4]])
    assert second[0, -1] == exclaiming.pad_token_id != first[0, -1]


def test_tokenizers_of_different_models_are_refused(tiny_tokenizer):
    letters = dict.fromkeys(sorted({letter + end for letter in "bird" for end in ("", "</w>")}))
    vocabulary = {token: index for index, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    with pytest.raises(ValueError, match="tokenizers disagree on 'bird'"):
        tokenize(["bird"], VOCABULARY, [tiny_tokenizer, CLIPTokenizer(vocab=vocabulary, merges=[])])


def test_a_prompt_of_exactly_the_longest_length_fits(tiny_tokenizer):
    tokens = tokenize(["<head:1> " * 75], VOCABULARY, [tiny_tokenizer])
    assert places(tokens, 0) == list(range(1, 76))
    assert tokens.input_ids[0][0, 76] == tiny_tokenizer.eos_token_id


def test_a_prompt_that_is_too_long_says_which_words_would_be_cut(tiny_tokenizer):
    prompt = "a bird " * 37 + "red <head:1> blue"
    with pytest.raises(UserError, match=r"takes 77 positions .* has 75; .* cut: '<head:1> blue'. Shorten .* by 2 pos"):
        tokenize([prompt], VOCABULARY, [tiny_tokenizer])


def test_a_long_cut_is_shown_in_part_and_a_word_across_the_limit_counts_as_cut(tiny_tokenizer):
    with pytest.raises(UserError, match=r"'bird bird .*bird ... \(25 words\)'"):
        tokenize(["bird " * 100], VOCABULARY, [tiny_tokenizer])
    with pytest.raises(UserError, match="would be cut: 'xyzxyz'"):
        tokenize(["bird " * 74 + "xyzxyz"], VOCABULARY, [tiny_tokenizer])


def test_a_word_that_the_tokenizer_lacks_is_named():
    vocabulary = {token: index for index, token in enumerate(["a</w>", "b</w>", "<|startoftext|>", "<|endoftext|>"])}
    with pytest.raises(UserError, match="does not know 'zebra'"):
        tokenize(["a zebra"], VOCABULARY, [CLIPTokenizer(vocab=vocabulary, merges=[])])


def test_one_string_is_not_a_list_of_prompts(tiny_tokenizer):
    with pytest.raises(TypeError, match="got one string"):
        tokenize("a bird", VOCABULARY, [tiny_tokenizer])


def test_no_prompts_give_empty_tensors(tiny_tokenizer):
    tokens = tokenize([], VOCABULARY, [tiny_tokenizer])
    assert tokens.input_ids[0].shape == (0, 77)
    assert tokens.part_ids.shape == (0, 0)


def test_the_callable_form_travels_to_workers(tiny_tokenizer):
    tokenizer = pickle.loads(pickle.dumps(PromptTokenizer(VOCABULARY, (tiny_tokenizer,), max_length=16)))
    tokens = tokenizer(["a <head:1> bird"])
    assert tokens.input_ids[0].shape == (1, 16)
    assert places(tokens, 0) == [2]
