"""Latents of crops: crop first, then encode, so that no receptive field of the VAE reaches beyond the crop.

The default is the other way round: cropping the latents of the whole image, which is encoded once. The difference is
measured by ``benchmarks/latent_crops.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from partcraft_lit.core.images import to_unit
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.store import Entry, Store, stable_hash
from partcraft_lit.core.types import Backbone, ImageSource, TrainingBatch
from partcraft_lit.data.latents import DTYPES, KIND, PREPARATION, LatentCrop, LatentTable, corner, encode, prepare

#: (B, 3, H, W) in -1...1 -> posterior mean and standard deviation, (B, C, H/f, W/f) each.
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


class CachedCrops:
    """A fixed number of crops per image, encoded before training.

    Args:
        table: latents of N x ``each`` crops, grouped by image.
        each: crops per image.
    """

    def __init__(self, table: LatentTable, each: int) -> None:
        self._table, self._each = table, each

    def __len__(self) -> int:
        return len(self._table) // self._each

    def crop(self, index: int, flip: bool, side: int, place: Sequence[float] | None) -> LatentCrop:
        """The cached crop that the first coordinate of ``place`` selects; see `LatentSource`."""
        number = index * self._each + (0 if place is None else int(place[0] * self._each))
        original_height, original_width, top, left, height, width = self._table.metadata(number)
        mean, std = self._table.get(number, flip)
        if flip:  # the mirror image of a crop is a crop of the mirror image
            left = width - side - left
        shape = (len(mean), side, side)
        return LatentCrop(top, left, height, width, (original_height, original_width), shape, (mean, std))


def cache_crops(
    source: ImageSource,
    backbone: Backbone,
    store: Store,
    each: int,
    seed: int,
    resolution: int,
    batch_size: int = 8,
    dtype: Literal["float16", "float32"] = "float16",
    progress: Callable[[int, int], None] | None = None,
    centre: bool = False,
) -> CachedCrops:
    """Encodes and caches the missing crops.

    Args:
        source: the images.
        backbone: encodes with its VAE.
        store: cache of the latents.
        each: crops per image.
        seed: of the crop positions; a position depends on the seed, the crop's index and the image's bytes only.
        resolution, batch_size, dtype, progress: as in ``cache_latents``.
        centre: a single centre crop per image.
    """
    each, factor = 1 if centre else each, backbone.vae_scale_factor
    side = resolution // factor
    hashes = [source.content_hash(index) for index in range(len(source))]

    def place(number: int) -> list[float] | None:
        if centre:
            return None
        generator = torch_generator(seed, "crop", hashes[number // each], number % each)
        found: list[float] = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        return found

    def compute(numbers: list[int]) -> Iterator[Entry]:
        images, metadata = [], []
        for number in numbers:
            original = source.image(number // each)
            whole = prepare(original, resolution, factor)
            height, width = whole.shape[-2] // factor, whole.shape[-1] // factor
            top, left = corner(height, width, side, place(number))
            images.append(_cut(whole, top, left, side, factor))
            metadata.append(torch.tensor([*original.shape[-2:], top, left, height, width]))
        return encode(images, metadata, [source.name(number // each) for number in numbers], backbone, DTYPES[dtype])

    keys = [
        stable_hash(
            "crop", content, backbone.hash, resolution, factor, dtype, PREPARATION, place(index * each + number)
        )
        for index, content in enumerate(hashes)
        for number in range(each)
    ]
    table = LatentTable(store, keys)
    store.fill(KIND, keys, compute, batch_size, progress, on_entry=table.hold)
    return CachedCrops(table, each)


class PixelCrops:
    """Crops as pixels, encoded when their batch is trained on: any crop position without a cache, and slow.

    Args:
        source: the images.
        channels: of the latents.
        resolution: short side of an image in pixels.
        factor: pixels per latent.
    """

    def __init__(self, source: ImageSource, channels: int, resolution: int, factor: int) -> None:
        self._source, self._channels = source, channels
        self._resolution, self._factor = resolution, factor

    def __len__(self) -> int:
        return len(self._source)

    def crop(self, index: int, flip: bool, side: int, place: Sequence[float] | None) -> LatentCrop:
        """The pixels of a crop; see `LatentSource`."""
        original = self._source.image(index)
        whole = prepare(original, self._resolution, self._factor)
        whole = whole.flip(-1) if flip else whole
        height, width = whole.shape[-2] // self._factor, whole.shape[-1] // self._factor
        top, left = corner(height, width, side, place)
        pixels = _cut(whole, top, left, side, self._factor)
        size = (original.shape[-2], original.shape[-1])
        return LatentCrop(top, left, height, width, size, (self._channels, side, side), None, pixels)


def _cut(whole: Tensor, top: int, left: int, side: int, factor: int) -> Tensor:
    """Crops pixels by a position and side given in latents."""
    rows, columns = (slice(start * factor, (start + side) * factor) for start in (top, left))
    return whole[..., rows, columns].contiguous()


@torch.no_grad()
def encode_crops(batch: TrainingBatch, encoder: Encode) -> TrainingBatch:
    """Encodes the batch's ``pixel_values`` into latents; a batch without them is returned unchanged."""
    if batch.pixel_values is None:
        return batch
    waiting = len(batch.pixel_values)
    mean, std = (value.to(batch.latents.device) for value in encoder(to_unit(batch.pixel_values)))
    encoded = mean + std * batch.latents[:waiting]
    return replace(batch, latents=torch.cat([encoded, batch.latents[waiting:]]), pixel_values=None)
