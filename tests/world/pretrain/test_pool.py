"""Images that are drawn ahead: the same ones, each once an epoch, and captions that are left empty."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.world.pretrain import pool as pool_module
from partcraft_lit.world.pretrain.autoencoder import build_autoencoder
from partcraft_lit.world.pretrain.examples import FreshExamples, drawn, encode
from partcraft_lit.world.pretrain.pool import PooledExamples, PoolSettings, draw_pool, example_source
from partcraft_lit.world.pretrain.tokenizer import build_tokenizer
from partcraft_lit.world.zoo.scenes import PretrainingScenes

SCENES = PretrainingScenes(seed=5, pair_share=0.3)
IMAGES = 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    return build_autoencoder().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Drawn by two processes, five images at a time."""
    found = tmp_path_factory.mktemp("pool") / "pool"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool_module, "_SHARE", 5)
        return draw_pool(SCENES, IMAGES, 2, found, lambda line: None)


@pytest.fixture
def never_empty(monkeypatch):
    monkeypatch.setattr(pool_module, "EMPTY_CAPTIONS", 0.0)


def epoch(folder: Path, vae: AutoencoderKL, number: int, size: int = 4):
    source = PooledExamples(folder, SCENES.seed, build_tokenizer(), vae, CPU)
    steps = range(number * IMAGES // size, (number + 1) * IMAGES // size)
    return [source.batch(step, size, torch_generator(0, "test", step)) for step in steps]


@pytest.mark.usefixtures("never_empty")
def test_an_epoch_holds_every_image_once_with_what_is_known_of_it(folder, vae):
    images, truth = drawn(SCENES, build_tokenizer(), range(IMAGES))
    latents = encode(vae, images).half().float()
    batches = epoch(folder, vae, 1)
    found = torch.cat([batch.latents for batch in batches])
    of = torch.cdist(found.flatten(1), latents.flatten(1)).argmin(dim=1)
    assert sorted(of.tolist()) == list(range(IMAGES))
    assert_close(found, latents[of])
    for field in dataclasses.fields(truth):
        expected = getattr(truth, field.name)[of]
        assert torch.equal(torch.cat([getattr(batch.truth, field.name) for batch in batches]), expected), field.name


@pytest.mark.usefixtures("never_empty")
def test_each_epoch_has_an_order_of_its_own(folder, vae):
    first, again, second = (torch.cat([b.latents for b in epoch(folder, vae, number)]) for number in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert_close(first.sum(), second.sum())


def test_an_empty_caption_names_no_part_and_tells_no_shape(folder, vae, monkeypatch):
    monkeypatch.setattr(pool_module, "EMPTY_CAPTIONS", 0.5)
    tokenizer = build_tokenizer()
    blank = tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0]
    truths = [batch.truth for batch in epoch(folder, vae, 0)]
    empty = torch.cat([(truth.input_ids == blank).all(dim=1) for truth in truths])
    assert 0 < int(empty.sum()) < IMAGES
    assert (torch.cat([truth.places for truth in truths])[empty] == -1).all()
    assert (torch.cat([truth.parts for truth in truths])[empty] == -1).all()
    assert not torch.cat([truth.told for truth in truths])[empty].any()


def test_what_is_drawn_is_kept_beside_other_files_and_other_pools(tmp_path):
    lines: list[str] = []
    (tmp_path / "notes.txt").write_text("mine")
    first = draw_pool(SCENES, 2, 1, tmp_path, lines.append)
    assert not lines
    before = (first / "images.npy").read_bytes()
    assert draw_pool(SCENES, 2, 1, tmp_path, lines.append) == first
    assert lines == [f"2 drawn images taken from {first}"]
    (tmp_path / "2_of_seed_6_64_px").write_text("a file in the way")
    with pytest.raises(UserError, match="2_of_seed_6_64_px: is there something else"):
        draw_pool(dataclasses.replace(SCENES, seed=6), 2, 1, tmp_path, lines.append)
    assert (first / "images.npy").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [first.name, "2_of_seed_6_64_px", "notes.txt"]


def test_without_a_number_images_are_drawn_for_each_step(vae, tmp_path):
    source = example_source(PoolSettings(), SCENES, build_tokenizer(), vae, CPU, tmp_path, lambda line: None)
    assert isinstance(source, FreshExamples) and not (tmp_path / "pool").exists()
