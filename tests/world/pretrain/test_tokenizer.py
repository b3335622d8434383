"""The tokenizer of the embedded model."""

from __future__ import annotations

import pytest
from transformers import CLIPTokenizer

from partcraft_lit.tokens.captions import TEMPLATES
from partcraft_lit.world.pretrain.tokenizer import build_tokenizer, grammar_words
from partcraft_lit.world.zoo.captions import SPECIES_NAMES
from partcraft_lit.world.zoo.looks import FAMILIES
from partcraft_lit.world.zoo.scenes import PretrainingScenes


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return build_tokenizer()


def inner_tokens(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text).input_ids[1:-1]


def test_every_word_of_the_grammar_is_one_token(tokenizer):
    words = grammar_words()
    assert len(set(words)) == len(words)
    ids = [inner_tokens(tokenizer, word) for word in words]
    assert [word for word, tokens in zip(words, ids, strict=True) if len(tokens) != 1] == []
    assert len({tokens[0] for tokens in ids}) == len(words)


def test_the_grammar_holds_every_name_part_and_shape():
    words = set(grammar_words())
    for name, family in FAMILIES.items():
        assert {family.noun, *family.part_names, *SPECIES_NAMES[name]} <= words
        assert {shape for part in family.shapes for shape in part} <= words


def test_captions_are_as_many_tokens_as_words_and_signs(tokenizer):
    for beast_share in (0.0, 1.0):
        _, captions = PretrainingScenes(size=16, beast_share=beast_share).batch(range(100))
        for text in captions:
            words = text.replace(",", " ,").replace("-", " - ").split()
            assert len(inner_tokens(tokenizer, text)) == len(words), text
            assert len(words) + 2 <= 77


def test_training_templates_fall_into_words(tokenizer):
    for template in TEMPLATES:
        text = template.format("bird").replace("-", " ")
        assert len(inner_tokens(tokenizer, text)) == len(text.split())


def test_it_is_a_tokenizer_of_clip(tokenizer):
    ids = tokenizer(["a bird", ""], padding="max_length", truncation=True).input_ids
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    assert [len(row) for row in ids] == [77, 77]
    assert ids[0][0] == ids[1][0] == start
    assert ids[0][3] == ids[1][1] == end
    assert (start, end) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert max(max(row) for row in ids) < len(tokenizer)


def test_case_does_not_matter_and_other_text_falls_into_letters(tokenizer):
    assert inner_tokens(tokenizer, "Red BIRD") == inner_tokens(tokenizer, "red bird")
    pieces = inner_tokens(tokenizer, "qxzj é 鳥 \U0001f426")
    assert len(pieces) >= 10
    assert tokenizer.bos_token_id not in pieces
    assert tokenizer.eos_token_id not in pieces


def test_saved_and_loaded_it_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    text = "a photo of a bird with red striped crested head, toucan wing and an unheard-of quiff"
    assert loaded(text).input_ids == tokenizer(text).input_ids
    assert loaded.model_max_length == 77


def test_words_of_ones_own(tokenizer):
    own = build_tokenizer(["red", "green", "agreed"])
    assert [len(inner_tokens(own, word)) for word in ("red", "green", "agreed", "blue")] == [1, 1, 1, 4]
