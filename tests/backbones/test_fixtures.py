"""The tiny models that all tests lean on are what they say they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from partcraft_lit.core.types import Backbone, PartToken, TokenizedPrompts


def test_tokenizer_knows_its_words_and_ends_with_the_largest_id(tiny_tokenizer):
    ids = tiny_tokenizer("a photo of a striped bird").input_ids
    assert tiny_tokenizer.convert_ids_to_tokens(ids) == [
        "<|startoftext|>", "a</w>", "photo</w>", "of</w>", "a</w>", "striped</w>", "bird</w>", "<|endoftext|>",
    ]  # fmt: skip
    assert tiny_tokenizer.eos_token_id == len(tiny_tokenizer) - 1 == max(tiny_tokenizer.get_vocab().values())
    padded = tiny_tokenizer("xyzzy", padding="max_length", max_length=77).input_ids
    assert len(padded) == 77
    assert padded[-1] == tiny_tokenizer.eos_token_id
    assert tiny_tokenizer.eos_token_id not in padded[1:6], "unknown words fall apart into letters, not into the end"


def test_every_word_is_one_token(tiny_tokenizer, tiny_words):
    for word in tiny_words:
        assert tiny_tokenizer.tokenize(word) == [word + "</w>"]


def test_folder_loads_as_a_pipeline_and_draws(tiny_sd_folder: Path):
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained(tiny_sd_folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a photo of a bird", num_inference_steps=2, output_type="pt").images
    assert images.shape == (1, 3, 32, 32)


def test_backbone_has_what_the_protocol_names(tiny_backbone):
    for name in Backbone.__annotations__:
        assert hasattr(tiny_backbone, name), name


def test_make_tokens_counts_places(make_tokens: Callable[..., TokenizedPrompts], tiny_tokenizer):
    tokens = make_tokens([["a photo of", PartToken(1, 3), "bird", PartToken(0, 2)], ["a bird"]])
    assert tokens.part_positions.tolist() == [[4, 6], [-1, -1]]
    assert tokens.part_ids.tolist() == [[1, 0], [-1, -1]]
    assert tokens.code_ids.tolist() == [[3, 2], [-1, -1]]
    (ids,) = tokens.input_ids
    assert ids.shape == (2, 77)
    assert ids.dtype == torch.long
    assert tiny_tokenizer.convert_ids_to_tokens(ids[0, :8].tolist())[4:] == [
        "a</w>",
        "bird</w>",
        "a</w>",
        "<|endoftext|>",
    ]
