"""Crops that are encoded by themselves, beforehand or in the step, against the images' own encoding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.core.images import to_unit
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import TokenizedPrompts
from partcraft_lit.data.crops import PixelCrops, cache_crops, encode_crops
from partcraft_lit.data.datamodule import Collate
from partcraft_lit.data.latents import LatentSource, cache_latents, prepare
from partcraft_lit.data.training_set import TrainingSet

SEED = 5
#: Pixels of the images; latents have a quarter of the sides.
SIZES = [(16, 40), (48, 16), (16, 16)]


class Pictures:
    """Images whose second channel says the column and whose third says the row."""

    class_noun, class_names = "", ()

    def __init__(self, sizes: Sequence[tuple[int, int]] = SIZES) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> Tensor:
        height, width = self.sizes[index]
        chance = torch.randint(0, 256, (height, width), generator=torch.Generator().manual_seed(index))
        rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
        return torch.stack([chance, columns.expand(height, -1), rows.expand(-1, width)]).to(torch.uint8)

    def name(self, index: int) -> str:
        return str(index)

    def content_hash(self, index: int) -> str:
        return f"picture {self.sizes[index]}"

    def label(self, index: int) -> None:
        return None


class SeesItsSurroundings:
    """Stands for a VAE: cells of 4 x 4 pixels, less the mean of the whole image that it is given."""

    name, hash, vae_scale_factor, latent_channels = "surroundings", "hash", 4, 3

    def __init__(self) -> None:
        self.vae, self.encoded = nn.Identity(), 0

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        self.encoded += len(pixel_values)
        mean = F.avg_pool2d(pixel_values, 4) - pixel_values.mean(dim=(2, 3), keepdim=True)
        return mean, torch.full_like(mean, 0.25)


@pytest.fixture
def backbone() -> Any:
    return SeesItsSurroundings()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def stored(backbone: Any, store: Store, each: int = 3, **changes: Any) -> LatentSource:
    settings = {"each": each, "seed": SEED, "resolution": 16, "batch_size": 2, "dtype": "float32"} | changes
    return cache_crops(Pictures(), backbone, store, **settings)


def window(index: int, flip: bool, top: int, left: int) -> Tensor:
    """(1, 3, 16, 16): what a square of the image at this corner, in latents, shows."""
    whole = prepare(Pictures().image(index), 16, 4)
    whole = whole.flip(-1) if flip else whole
    return to_unit(whole[:, 4 * top : 4 * top + 16, 4 * left : 4 * left + 16])[None]


@pytest.mark.parametrize("flip", [False, True])
def test_a_stored_crop_is_encoded_by_itself(backbone: Any, store: Store, flip: bool) -> None:
    crops = stored(backbone, store)
    corners = set()
    for index, (height, width) in enumerate(SIZES):
        for chance in (0.0, 0.4, 0.9):
            square = crops.crop(index, flip, 4, (chance, 0.7))
            mean, std = backbone.encode_images(window(index, flip, square.top, square.left))
            assert square.posterior is not None
            assert_close(square.posterior, (mean[0], std[0]))
            assert (4 * square.height, 4 * square.width) == square.original_size == (height, width)
            corners.add((index, square.top, square.left))
    assert len(corners) > 4
    assert {place for place in corners if place[0] == 2} == {(2, 0, 0)}, "a square picture has one square"


def test_a_cut_of_the_latents_knows_what_was_beyond_it(backbone: Any, store: Store) -> None:
    table = cache_latents(Pictures(), backbone, store, 16, dtype="float32")
    square = table.crop(0, False, 4, (0.0, 0.9))
    alone, _ = backbone.encode_images(window(0, False, square.top, square.left))
    assert square.posterior is not None
    assert not torch.allclose(square.posterior[0], alone[0], atol=1e-3)


def test_crops_are_computed_once_and_belong_to_their_seed(backbone: Any, store: Store) -> None:
    first = stored(backbone, store)
    assert backbone.encoded == 2 * 9  # and the mirror images
    again = stored(backbone, store)
    assert backbone.encoded == 2 * 9
    assert first.crop(0, True, 4, (0.5, 0.0)).left == again.crop(0, True, 4, (0.5, 0.0)).left
    stored(backbone, store, seed=SEED + 1)
    assert backbone.encoded == 4 * 9
    middle = stored(backbone, store, centre=True).crop(0, False, 4, None)
    assert (middle.top, middle.left) == (0, 3)


def examples(squares: LatentSource, **changes: Any) -> TrainingSet:
    """Label maps have a cell for each 4 pixels, and its column as part."""
    maps = [torch.arange(width // 4).expand(height // 4, -1).to(torch.uint8) for height, width in SIZES]
    settings = {"flip": True, "crop": "random"} | changes
    return TrainingSet(
        SEED, 3, squares, maps, torch.zeros(3, 12, dtype=torch.long), _caption, 16, 4, 4, 1000, **settings
    )


def _caption(codes: Tensor, generator: torch.Generator) -> str:
    return "a picture"


def _no_tokens(prompts: list[str]) -> TokenizedPrompts:
    nothing = torch.zeros(len(prompts), 1, dtype=torch.long)
    return TokenizedPrompts((nothing,), nothing, nothing, nothing)


def test_what_is_encoded_in_the_step_is_exact_where_it_is_cut(backbone: Any) -> None:
    unstored = examples(PixelCrops(Pictures(), 3, 16, 4))
    samples = [unstored[number] for number in range(12)]
    batch = encode_crops(Collate(_no_tokens)(samples), backbone.encode_images)
    assert batch.pixel_values is None
    for number, sample in enumerate(samples):
        top, left = sample.crop[2] // 4, sample.crop[3] // 4
        assert sample.pixel_values is not None
        flipped = bool(sample.pixel_values[1, 0, 0] > sample.pixel_values[1, 0, 1])
        pixels = window(sample.image_id, flipped, top, left)
        assert_close(to_unit(sample.pixel_values)[None], pixels)
        mean, std = backbone.encode_images(pixels)
        assert_close(batch.latents[number], mean[0] + std[0] * sample.latents)
        assert torch.equal(sample.label_map.long(), sample.pixel_values[1, ::4, ::4].long() // 4)


def test_without_a_crop_all_ways_give_one_sample(backbone: Any, store: Store) -> None:
    square = Pictures([(16, 16), (24, 24)])
    ways = [
        cache_latents(square, backbone, store, 16, dtype="float32"),
        cache_crops(square, backbone, store, 2, SEED, 16, dtype="float32"),
        PixelCrops(square, 3, 16, 4),
    ]
    maps = [torch.zeros(4, 4, dtype=torch.uint8)] * 2
    sets = [
        TrainingSet(
            SEED, 2, way, maps, torch.zeros(2, 1, dtype=torch.long), _caption, 16, 4, 4, 1000, flip=True, crop="random"
        )
        for way in ways
    ]
    batches = [encode_crops(Collate(_no_tokens)([each[n] for n in range(6)]), backbone.encode_images) for each in sets]
    for other in batches[1:]:
        assert_close(other.latents, batches[0].latents)
        assert torch.equal(other.noise, batches[0].noise)
        assert torch.equal(other.timesteps, batches[0].timesteps)
        assert other.crops is not None
        assert torch.equal(other.crops, batches[0].crops)
