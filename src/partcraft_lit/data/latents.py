"""Cached VAE posteriors (mean and standard deviation) of images and of their mirror images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import clamp_aspect, resize_short_side, to_unit
from partcraft_lit.core.store import Entry, Store, stable_hash
from partcraft_lit.core.types import Backbone, ImageSource

KIND = "latents"
#: Bump when the preprocessing of an image changes.
PREPARATION = "short side, antialiased bilinear, aspect 3:1, with original size, v2"
DTYPES = {"float16": torch.float16, "float32": torch.float32}
#: Order of the tensors of one image in memory; the last begins with the original height and width in pixels.
_NAMES = ("mean", "std", "mean_flipped", "std_flipped", "original_size")


@dataclass(frozen=True)
class LatentCrop:
    """A square crop of an image or its mirror image.

    Attributes:
        top, left: its corner in the latents of the whole image.
        height, width: of the whole image, in latents.
        original_size: (height, width) of the image file, in pixels.
        shape: of its latents, (C, s, s).
        posterior: mean and standard deviation, (C, s, s) float32 each; None if not encoded yet.
        pixels: (3, s * factor, s * factor) uint8 to encode; None if encoded.
    """

    top: int
    left: int
    height: int
    width: int
    original_size: tuple[int, int]
    shape: tuple[int, int, int]
    posterior: tuple[Tensor, Tensor] | None
    pixels: Tensor | None = None


class LatentSource(Protocol):
    """Where a `TrainingSet` takes its crops from."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def crop(self, index: int, flip: bool, side: int, place: Sequence[float] | None) -> LatentCrop:
        """A square crop.

        Args:
            index: of the image.
            flip: crop the mirror image.
            side: of the crop, in latents.
            place: relative crop position (down, across) in [0, 1); None is the centre.
        """
        ...


def corner(height: int, width: int, side: int, place: Sequence[float] | None) -> tuple[int, int]:
    """Top and left of a square crop, all in latents; ``place`` as in `LatentSource`.

    Raises:
        ValueError: if the image is smaller than the crop.
    """
    spare = (height - side, width - side)
    if min(spare) < 0:
        raise ValueError(
            f"Latents of size {(height, width)} are smaller than the crop of {side}; make them for the same resolution."
        )
    if place is None:
        return spare[0] // 2, spare[1] // 2
    return int(place[0] * (spare[0] + 1)), int(place[1] * (spare[1] + 1))


class LatentTable:
    """Posterior mean and standard deviation of each image of a source and of its mirror image.

    Entries are held in memory up to ``memory_limit`` bytes; the rest is read from the store on demand. Safe to use from
    several processes.
    """

    def __init__(self, store: Store, keys: Sequence[str], memory_limit: int = 2 << 30) -> None:
        self._store = store
        self._keys = list(keys)
        self._room = memory_limit
        self._held: dict[str, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, index: int, flip: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (C, h, w) float32 each, scaled for the UNet; ``flip`` gives the mirror image's.

        Raises:
            UserError: if the entry is missing from the store or damaged.
        """
        held = self._tensors(index)
        mean, std = held[2:4] if flip else held[:2]
        return mean.float(), std.float()

    def crop(self, index: int, flip: bool, side: int, place: Sequence[float] | None) -> LatentCrop:
        """Crops the latents of the whole image; see `LatentSource`. The VAE saw what lies beyond the crop."""
        mean, std = self.get(index, flip)
        height, width = mean.shape[-2:]
        top, left = corner(height, width, side, place)
        window = (slice(None), slice(top, top + side), slice(left, left + side))
        shape, both = (len(mean), side, side), (mean[window], std[window])
        return LatentCrop(top, left, height, width, self.original_size(index), shape, both)

    def size(self, index: int) -> tuple[int, int]:
        """(h, w) of an image's latents."""
        mean, _ = self.get(index, flip=False)
        return int(mean.shape[-2]), int(mean.shape[-1])

    def original_size(self, index: int) -> tuple[int, int]:
        """(height, width) of the image file, in pixels."""
        height, width = self.metadata(index)[:2]
        return height, width

    def metadata(self, index: int) -> list[int]:
        """``original_size`` of an entry, followed by any further integers stored with it."""
        values: list[int] = self._tensors(index)[4].tolist()
        return values

    def hold(self, index: int, entry: Entry) -> None:
        """Keeps an entry in memory if it fits."""
        key = self._keys[index]
        needed = sum(tensor.numel() * tensor.element_size() for tensor in entry.values())
        if key not in self._held and needed <= self._room:
            self._held[key] = _in_order(entry)
            self._room -= needed

    def _tensors(self, index: int) -> tuple[Tensor, ...]:
        key = self._keys[index]
        held = self._held.get(key)
        if held is not None:
            return held
        entry = self._store.get(KIND, key)
        if entry is None:
            raise UserError(
                f"The latents of image {index} are gone from {self._store.root} or damaged. Start again: what is "
                f"missing is computed at the start."
            )
        return _in_order(entry)


def cache_latents(
    source: ImageSource,
    backbone: Backbone,
    store: Store,
    resolution: int,
    batch_size: int = 8,
    dtype: Literal["float16", "float32"] = "float16",
    progress: Callable[[int, int], None] | None = None,
    memory_limit: int = 2 << 30,
) -> LatentTable:
    """Encodes and caches the missing latents.

    Args:
        source: the images.
        backbone: encodes with its VAE, on its device and in its dtype.
        store: cache of the latents, keyed by image content, ``backbone.hash`` and preprocessing.
        resolution: short side in pixels; a multiple of ``backbone.vae_scale_factor``. Sides are rounded to that factor,
            and images longer than 3:1 lose both ends.
        batch_size: images (and as many mirror images) per encoder pass.
        dtype: of the stored latents; half precision has a relative error of 5e-4.
        progress: called with (images ready, images).
        memory_limit: bytes of latents held in memory.

    Raises:
        UserError: if the resolution does not fit the VAE, or the VAE gives non-finite values.
    """
    factor = backbone.vae_scale_factor
    if resolution < factor or resolution % factor:
        nearest = max(factor, factor * round(resolution / factor))
        raise UserError(
            f"The resolution must be a multiple of {factor} pixels for the backbone {backbone.name!r}, got "
            f"{resolution}. Set it to {nearest}."
        )
    if dtype not in DTYPES:
        raise UserError(f"Latents are stored as float16 or float32, got {dtype!r}.")
    keys = [
        stable_hash("latents", source.content_hash(index), backbone.hash, resolution, factor, dtype, PREPARATION)
        for index in range(len(source))
    ]

    def compute(indices: list[int]) -> Iterator[Entry]:
        originals = [source.image(index) for index in indices]
        images = [prepare(image, resolution, factor) for image in originals]
        metadata = [torch.tensor(image.shape[-2:]) for image in originals]
        return encode(images, metadata, [source.name(index) for index in indices], backbone, DTYPES[dtype])

    table = LatentTable(store, keys, memory_limit)
    store.fill(KIND, keys, compute, batch_size, progress, on_entry=table.hold)
    return table


@torch.no_grad()
def encode(
    images: Sequence[Tensor], metadata: Sequence[Tensor], names: Sequence[str], backbone: Backbone, dtype: torch.dtype
) -> Iterator[Entry]:
    """One store entry per image.

    Args:
        images: (3, h, w) uint8, prepared.
        metadata: stored with each as "original_size".
        names: of the images, for errors.
        backbone: encodes with its VAE.
        dtype: of the entries.
    """
    entries: dict[int, Entry] = {}
    # Images of one size are encoded together; a batch of photographs has few sizes.
    for size in sorted({tuple(image.shape) for image in images}):
        same = [number for number, image in enumerate(images) if tuple(image.shape) == size]
        pixels = to_unit(torch.stack([images[number] for number in same]))
        mean, std = posterior(backbone, pixels)
        # A VAE does not commute with mirroring, so the mirror image is encoded separately.
        mean_flipped, std_flipped = posterior(backbone, pixels.flip(-1))
        for row, number in enumerate(same):
            values = (mean[row], std[row], mean_flipped[row], std_flipped[row])
            entries[number] = {name: value.cpu().to(dtype) for name, value in zip(_NAMES[:4], values, strict=True)}
            _require_finite(entries[number], names[number], backbone.name, dtype)
            entries[number]["original_size"] = metadata[number]
    for number in range(len(images)):
        yield entries[number]


def prepare(image: Tensor, resolution: int, factor: int) -> Tensor:
    """Preprocesses for the VAE: (3, h, w) uint8, short side ``resolution``, sides multiples of ``factor``."""
    return resize_short_side(clamp_aspect(image), resolution, multiple=factor)


def posterior(backbone: Backbone, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, h, w) in -1...1 -> mean and standard deviation, on the VAE's device."""
    parameter = next(iter(backbone.vae.parameters()), None)
    return backbone.encode_images(pixels.to(parameter.device) if parameter is not None else pixels)


def _require_finite(entry: Entry, name: str, backbone: str, dtype: torch.dtype) -> None:
    if not all(bool(torch.isfinite(value).all()) for value in entry.values()):
        raise UserError(
            f"The VAE of the backbone {backbone!r} gives values that are not finite for {name}, stored as {dtype}. Run "
            f"the VAE in float32 (some overflow in half precision), and store latents as float32."
        )


def _in_order(entry: Entry) -> tuple[Tensor, ...]:
    return tuple(entry[name] for name in _NAMES)
