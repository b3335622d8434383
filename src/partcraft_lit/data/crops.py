"""Crops that are encoded by themselves, so that their latents know nothing of what was cut away.

A crop of the latents of a whole picture, which is what training takes otherwise, costs one encoding for ever; what it
loses is measured by ``benchmarks/latent_crops.py``.
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
from partcraft_lit.data.latents import DTYPES, KIND, PREPARATION, LatentTable, Square, corner, encode, prepare

#: (B, 3, H, W) in -1...1 -> mean and standard deviation, (B, C, H/f, W/f) each.
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]


class StoredCrops:
    """The same few crops of each image, encoded before training.

    Args:
        table: of number of images times ``each`` crops, those of an image in a row.
        each: crops of an image.
    """

    def __init__(self, table: LatentTable, each: int) -> None:
        self._table, self._each = table, each

    def __len__(self) -> int:
        return len(self._table) // self._each

    def square(self, index: int, flip: bool, side: int, place: Sequence[float] | None) -> Square:
        """One of the crops, chosen by the first number of ``place``; see ``Squares``."""
        number = index * self._each + (0 if place is None else int(place[0] * self._each))
        original_height, original_width, top, left, height, width = self._table.facts(number)
        mean, std = self._table.get(number, flip)
        if flip:  # the mirror image of a crop is a crop of the mirror image
            left = width - side - left
        shape = (len(mean), side, side)
        return Square(top, left, height, width, (original_height, original_width), shape, (mean, std))


def store_crops(
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
) -> StoredCrops:
    """Encodes so many square crops of each image as the store does not have yet.

    Args:
        source: the images.
        backbone: its VAE encodes.
        store: where latents are looked up and kept.
        each: crops of an image.
        seed: of the places; a crop depends on it, its number and the image's bytes alone.
        resolution, batch_size, dtype, progress: as in ``cache_latents``.
        centre: one crop, from the middle.
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
        images, facts = [], []
        for number in numbers:
            original = source.image(number // each)
            whole = prepare(original, resolution, factor)
            height, width = whole.shape[-2] // factor, whole.shape[-1] // factor
            top, left = corner(height, width, side, place(number))
            images.append(_cut(whole, top, left, side, factor))
            facts.append(torch.tensor([*original.shape[-2:], top, left, height, width]))
        return encode(images, facts, [source.name(number // each) for number in numbers], backbone, DTYPES[dtype])

    keys = [
        stable_hash(
            "crop", content, backbone.hash, resolution, factor, dtype, PREPARATION, place(index * each + number)
        )
        for index, content in enumerate(hashes)
        for number in range(each)
    ]
    table = LatentTable(store, keys)
    store.fill(KIND, keys, compute, batch_size, progress, on_entry=table.hold)
    return StoredCrops(table, each)


class UnstoredCrops:
    """Crops as pixels, which are encoded when their batch is trained on: exact at every place, and slow.

    Args:
        source: the images.
        channels: of the latents.
        resolution: short side of a picture in pixels.
        factor: pixels per latent.
    """

    def __init__(self, source: ImageSource, channels: int, resolution: int, factor: int) -> None:
        self._source, self._channels = source, channels
        self._resolution, self._factor = resolution, factor

    def __len__(self) -> int:
        return len(self._source)

    def square(self, index: int, flip: bool, side: int, place: Sequence[float] | None) -> Square:
        """Pixels of the square; see ``Squares``."""
        original = self._source.image(index)
        whole = prepare(original, self._resolution, self._factor)
        whole = whole.flip(-1) if flip else whole
        height, width = whole.shape[-2] // self._factor, whole.shape[-1] // self._factor
        top, left = corner(height, width, side, place)
        pixels = _cut(whole, top, left, side, self._factor)
        size = (original.shape[-2], original.shape[-1])
        return Square(top, left, height, width, size, (self._channels, side, side), None, pixels)


def _cut(whole: Tensor, top: int, left: int, side: int, factor: int) -> Tensor:
    """A square of a picture whose place and side are given in latents."""
    rows, columns = (slice(start * factor, (start + side) * factor) for start in (top, left))
    return whole[..., rows, columns].contiguous()


@torch.no_grad()
def encode_crops(batch: TrainingBatch, encoder: Encode) -> TrainingBatch:
    """A batch whose crops are still pixels, with their latents; any other as it is."""
    if batch.pixel_values is None:
        return batch
    waiting = len(batch.pixel_values)
    mean, std = (value.to(batch.latents.device) for value in encoder(to_unit(batch.pixel_values)))
    encoded = mean + std * batch.latents[:waiting]
    return replace(batch, latents=torch.cat([encoded, batch.latents[waiting:]]), pixel_values=None)
