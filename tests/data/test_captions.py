"""Captions that come with images, on their way into training prompts."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from partcraft_lit.commands.train.examples import training_set
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import TokenizedPrompts
from partcraft_lit.data.captions import caption_texts
from partcraft_lit.data.crops import PixelCrops
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.jpg", "c.png"):
        Image.new("RGB", (12, 10), "red").save(tmp_path / name)
    return tmp_path


def twelve_words(prompts: list[str]) -> TokenizedPrompts:
    """Stands for a text encoder with twelve positions."""
    if any(len(prompt.split()) > 12 for prompt in prompts):
        raise UserError("too long")
    none = torch.zeros(1, 0, dtype=torch.long)
    return TokenizedPrompts((none,), none, none, none)


def test_a_text_file_beside_an_image_is_its_caption(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "a.txt").write_bytes("\ufeffa red\r\nbird\r\n".encode())
    (folder / "c.txt").write_text("one two three four five six seven eight nine ten eleven", encoding="utf-8")
    with caplog.at_level(logging.INFO):
        texts = caption_texts(ImageFolder(folder), ["a photo of a <head:3>"] * 3, twelve_words)
    assert texts == ["a red bird", "", "one two three four five six seven"]
    assert "2 of 3 images have captions" in caplog.text and "1 captions are longer" in caplog.text


def test_training_prompts_hold_the_captions(folder: Path) -> None:
    (folder / "a.txt").write_text("a red bird", encoding="utf-8")
    vocabulary = PartVocabulary(["background", "head"], [1, 2])
    builder = CaptionBuilder(vocabulary, template_prob=1.0, class_noun="bird", background=False, templates=("my {}",))
    codes = torch.tensor([[0, 0], [0, 1], [0, 0]])
    run = SimpleNamespace(
        settings=SimpleNamespace(
            seed=0,
            data=SimpleNamespace(
                present_only=False,
                flip=False,
                crop="center",
                scale_variants=0,
                mix=SimpleNamespace(is_used=False),
                empty_captions=0.0,
                timestep_shift=1.0,
            ),
            loss=SimpleNamespace(region="all", reads_label_map=False),
        ),
        source=ImageFolder(folder),
        discovery=SimpleNamespace(codes=codes, label_maps=[torch.zeros(2, 2, dtype=torch.uint8)] * 3),
        scaled=None,
        latents=PixelCrops(ImageFolder(folder), channels=4, resolution=8, factor=1),
        module=SimpleNamespace(
            method=SimpleNamespace(
                make_caption=builder, plain_caption=builder.plain, tokenize=twelve_words, transform=None
            )
        ),
        backbone=SimpleNamespace(
            resolution=8,
            vae_scale_factor=1,
            attention_size=2,
            flow=None,
            noise_scheduler=SimpleNamespace(
                alphas_cumprod=torch.ones(10),
                config=SimpleNamespace(num_train_timesteps=10, prediction_type="epsilon"),
            ),
        ),
    )
    examples = training_set(run, total_samples=3)
    prompts = {example.image_id: example.prompt for example in (examples[number] for number in range(3))}
    assert prompts == {0: "a red <head:0> bird", 1: "my <head:1> bird", 2: "my <head:0> bird"}


def test_without_captions_nothing_changes(folder: Path) -> None:
    assert caption_texts(ImageFolder(folder), [""] * 3, twelve_words) is None
    (folder / "b.txt").write_text(" \n", encoding="utf-8")
    assert caption_texts(ImageFolder(folder), [""] * 3, twelve_words) is None


def test_a_caption_in_another_encoding_is_an_error(folder: Path) -> None:
    (folder / "b.txt").write_bytes("größer".encode("cp1252"))
    with pytest.raises(UserError, match=r"b\.txt cannot be read as UTF-8 text"):
        caption_texts(ImageFolder(folder), [""] * 3, twelve_words)
