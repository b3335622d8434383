"""Latents are the VAE's, of the whole image and of its mirror image, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.store import Store
from partcraft_lit.data.latents import LatentTable, cache_latents, prepare


@dataclass
class Images:
    """An image source in memory."""

    images: list[Tensor]
    hashes: list[str] = field(default_factory=list)
    class_noun: str = ""
    class_names: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> Tensor:
        return self.images[index]

    def name(self, index: int) -> str:
        return f"image {index}"

    def content_hash(self, index: int) -> str:
        return self.hashes[index] if self.hashes else f"hash {index}"

    def label(self, index: int) -> int | None:
        return None


class LeftIsBrighter:
    """Stands for a VAE: the mean of 4 x 4 pixels, and one channel that does not commute with mirroring."""

    name, hash, vae_scale_factor = "left", "hash of left", 4

    def __init__(self) -> None:
        self.vae = nn.Identity()
        self.batches: list[tuple[int, ...]] = []

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(tuple(pixel_values.shape))
        mean = F.avg_pool2d(pixel_values, 4)
        first_column = pixel_values[:, :1, ::4, ::4]  # the left pixel of each cell: not the mirror image's
        return torch.cat([mean, first_column], dim=1), torch.full_like(mean[:, :1], 0.25).expand(-1, 4, -1, -1)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_mean_and_deviation_are_the_vaes_and_the_flip_is_the_mirror_images(store: Store) -> None:
    image, backbone = noise(16, 16), LeftIsBrighter()
    table = cache_latents(Images([image]), backbone, store, resolution=16, dtype="float32")  # type: ignore[arg-type]
    for flip, pixels in ((False, image), (True, image.flip(-1))):
        mean, std = table.get(0, flip)
        expected = backbone.encode_images(to_unit(pixels)[None])
        assert_close(mean, expected[0][0])
        assert_close(std, expected[1][0])
    assert not torch.equal(table.get(0, True)[0], table.get(0, False)[0].flip(-1))


def test_with_a_real_vae(store: Store, tiny_backbone: Any) -> None:
    images = [noise(40, 56, seed) for seed in range(3)]
    table = cache_latents(Images(images), tiny_backbone, store, resolution=32, dtype="float32", batch_size=2)
    for index, image in enumerate(images):
        pixels = to_unit(prepare(image, 32, tiny_backbone.vae_scale_factor))[None]
        mean, std = tiny_backbone.encode_images(pixels)
        assert_close(table.get(index, False), (mean[0], std[0]))
        assert_close(table.get(index, True)[0], tiny_backbone.encode_images(pixels.flip(-1))[0][0])
    factor = tiny_backbone.vae_scale_factor
    assert table.size(0) == (32 // factor, round(32 * 56 / 40 / factor))


def test_half_precision_is_the_default_and_near(store: Store) -> None:
    source, backbone = Images([noise(16, 24)]), LeftIsBrighter()
    half = cache_latents(source, backbone, store, resolution=16)  # type: ignore[arg-type]
    full = cache_latents(source, backbone, store, resolution=16, dtype="float32")  # type: ignore[arg-type]
    assert half.get(0, False)[0].dtype == torch.float32
    assert_close(half.get(0, False), full.get(0, False), atol=0, rtol=5e-4)
    assert not torch.equal(half.get(0, False)[0], full.get(0, False)[0])


@pytest.mark.parametrize(
    "size, latents",
    [
        ((16, 16), (4, 4)),
        ((100, 100), (4, 4)),
        ((20, 30), (4, 6)),
        ((30, 20), (6, 4)),
        ((10, 200), (4, 12)),
        ((8, 9), (4, 4)),
    ],
)
def test_sizes(store: Store, size: tuple[int, int], latents: tuple[int, int]) -> None:
    table = cache_latents(Images([noise(*size)]), LeftIsBrighter(), store, resolution=16)  # type: ignore[arg-type]
    assert table.size(0) == latents


def test_mixed_sizes_stay_in_order_and_are_encoded_together_by_size(store: Store) -> None:
    images = [noise(16, 16, 1), noise(16, 32, 2), noise(16, 16, 3), noise(16, 32, 4), noise(16, 16, 5)]
    backbone = LeftIsBrighter()
    table = cache_latents(Images(images), backbone, store, resolution=16, batch_size=4, dtype="float32")  # type: ignore[arg-type]
    assert sorted(backbone.batches) == sorted([(2, 3, 16, 16)] * 2 + [(2, 3, 16, 32)] * 2 + [(1, 3, 16, 16)] * 2)
    for index, image in enumerate(images):
        assert_close(table.get(index, False)[0][:3], F.avg_pool2d(to_unit(image), 4))


def test_only_new_images_are_encoded_and_equal_ones_once(store: Store) -> None:
    images = [noise(16, 16, seed) for seed in range(3)]
    backbone = LeftIsBrighter()
    cache_latents(Images(images[:2], ["a", "b"]), backbone, store, resolution=16)  # type: ignore[arg-type]
    backbone.batches.clear()
    moved = Images([images[2], images[0], images[1], images[2]], ["c", "a", "b", "c"])
    heard: list[tuple[int, int]] = []
    table = cache_latents(moved, backbone, store, 16, progress=lambda *seen: heard.append(seen))  # type: ignore[arg-type]
    assert backbone.batches == [(1, 3, 16, 16)] * 2  # one image and its mirror image
    assert_close(table.get(0, True), table.get(3, True))
    assert heard[-1] == (4, 4)


@pytest.mark.parametrize("change", ["network", "resolution", "dtype"])
def test_another_network_or_preparation_is_another_entry(store: Store, change: str) -> None:
    source, backbone = Images([noise(32, 32)]), LeftIsBrighter()
    cache_latents(source, backbone, store, 16)  # type: ignore[arg-type]
    backbone.batches.clear()
    if change == "network":
        backbone.hash = "retrained"
    options: dict[str, Any] = {"dtype": "float32"} if change == "dtype" else {}
    cache_latents(source, backbone, store, 32 if change == "resolution" else 16, **options)  # type: ignore[arg-type]
    assert backbone.batches


def test_what_does_not_fit_into_memory_is_read_from_the_store(store: Store) -> None:
    source, backbone = Images([noise(16, 16, seed) for seed in range(3)]), LeftIsBrighter()
    entry = 4 * 4 * 4 * 4 * 2 + 16  # mean, std and the mirror image's; 4 channels of 4 x 4 in two bytes; two numbers
    held = cache_latents(source, backbone, store, 16)  # type: ignore[arg-type]
    partly = cache_latents(source, backbone, store, 16, memory_limit=entry)  # type: ignore[arg-type]
    for index in range(3):
        for flip in (False, True):
            assert_close(partly.get(index, flip), held.get(index, flip), atol=0, rtol=0)
    for path in store.root.rglob("*.pack"):
        path.unlink()
    assert [index for index in range(3) if _readable(partly, index)] == [0]
    assert all(_readable(held, index) for index in range(3))
    with pytest.raises(UserError, match="latents of image 1 are gone from"):
        partly.get(1, False)


def _readable(table: LatentTable, index: int) -> bool:
    try:
        table.get(index, False)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("resolution, nearest", [(18, 16), (2, 4), (0, 4)])
def test_a_resolution_that_does_not_suit(store: Store, resolution: int, nearest: int) -> None:
    with pytest.raises(
        UserError, match=rf"multiple of 4 pixels for the backbone 'left', got {resolution}\. Set it to {nearest}"
    ):
        cache_latents(Images([noise(16, 16)]), LeftIsBrighter(), store, resolution)  # type: ignore[arg-type]


def test_an_unknown_number_format(store: Store) -> None:
    with pytest.raises(UserError, match="float16 or float32, got 'half'"):
        cache_latents(Images([noise(16, 16)]), LeftIsBrighter(), store, 16, dtype="half")  # type: ignore[arg-type]


def test_values_that_are_not_finite_are_never_stored(store: Store) -> None:
    class Overflows(LeftIsBrighter):
        def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
            mean, std = super().encode_images(pixel_values)
            return mean + 1e6, std  # fits float32, not float16

    with pytest.raises(UserError, match=r"backbone 'left' gives values that are not finite for image 0"):
        cache_latents(Images([noise(16, 16)]), Overflows(), store, 16)  # type: ignore[arg-type]
    assert not list(store.root.rglob("*.pack"))


def test_the_size_that_an_image_came_in_is_kept(store: Store) -> None:
    images = Images([noise(20, 40), noise(16, 17)])
    for _ in range(2):  # computed, then read
        table = cache_latents(images, LeftIsBrighter(), store, resolution=16, memory_limit=0)  # type: ignore[arg-type]
        assert [table.original_size(index) for index in range(2)] == [(20, 40), (16, 17)]
