"""Prior images: drawn once, kept, the model's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from partcraft_lit.backbones.sampling import sample
from partcraft_lit.backbones.text import plain_tokens
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store
from partcraft_lit.core.visualization import to_pil
from partcraft_lit.data import prior as prior_module
from partcraft_lit.data.prior import prior_prompt, prior_source
from partcraft_lit.data.settings import PriorSettings

PRIOR = PriorSettings(
    weight=1.0,
    prompt="auto",
    images=3,
    dir=None,
    seed=4,
    steps=1,
    guidance_scale=2.0,
    scheduler="ddim",
    batch_size=2,
)


@pytest.fixture
def drawn(monkeypatch) -> list[list[int]]:
    """Seeds of every call that draws."""
    calls: list[list[int]] = []

    def counted(*args, seeds, **options):
        calls.append(list(seeds))
        return sample(*args, seeds=seeds, **options)

    monkeypatch.setattr(prior_module, "sample", counted)
    return calls


def test_they_are_drawn_once_and_what_is_missing_is_added(tiny_backbone, tmp_path, drawn):
    store = Store(tmp_path)
    images = prior_source(PRIOR, tiny_backbone, store, "bird")
    assert drawn == [[4, 5], [6]] and len(images) == 3
    again = prior_source(PRIOR, tiny_backbone, Store(tmp_path), "bird")
    assert drawn == [[4, 5], [6]]
    assert torch.equal(again.image(1), images.image(1)) and again.content_hash(1) == images.content_hash(1)
    prior_source(dataclasses.replace(PRIOR, images=4, batch_size=1), tiny_backbone, store, "bird")
    assert drawn[2:] == [[7]]


@pytest.mark.parametrize("change", [{"prompt": "a dog"}, {"steps": 2}, {"scheduler": "euler"}, {"guidance_scale": 1.0}])
def test_what_decides_the_picture_decides_the_key(tiny_backbone, tmp_path, drawn, change):
    one = dataclasses.replace(PRIOR, images=1)
    prior_source(one, tiny_backbone, Store(tmp_path), "bird")
    prior_source(dataclasses.replace(one, **change), tiny_backbone, Store(tmp_path), "bird")
    assert drawn == [[4], [4]]


def test_they_are_what_the_model_draws_from_the_prompt(tiny_backbone, tmp_path):
    image = prior_source(PRIOR, tiny_backbone, Store(tmp_path), "bird").image(2)
    tokens = plain_tokens(tiny_backbone.tokenizers, ["a photo of a bird"])
    expected = sample(tiny_backbone, tokens, None, seeds=[6], steps=1, guidance_scale=2.0, scheduler="ddim")[0]
    assert (image.int() - expected.int()).abs().max() <= 1


def test_a_folder_instead(tiny_backbone, tmp_path: Path, drawn):
    for number in range(2):
        to_pil(torch.full((3, 32, 40), 40 * number, dtype=torch.uint8)).save(tmp_path / f"{number}.png")
    images = prior_source(dataclasses.replace(PRIOR, dir=tmp_path), tiny_backbone, Store(tmp_path / "store"), "bird")
    assert len(images) == 2 and not drawn


def test_the_prompt():
    assert prior_prompt(PRIOR, "owl") == "a photo of an owl"
    assert prior_prompt(dataclasses.replace(PRIOR, prompt="a photo at the beach"), "") == "a photo at the beach"
    with pytest.raises(UserError, match=r"prior\.prompt=auto is .* and this one has none: set dataset\.class_noun"):
        prior_prompt(PRIOR, "")
