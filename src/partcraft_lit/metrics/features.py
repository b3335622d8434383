"""Image features, one vector per image from a frozen network, and the metrics that use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric

from partcraft_lit.core.images import resize, resize_short_side
from partcraft_lit.core.types import PatchFeatures

T = TypeVar("T")


class ImageFeatures(Protocol):
    """A frozen network that describes an image by one vector.

    Attributes:
        id: what network and what preparation, as it stands in the key of a metric: ``fid@<id>``.
        dim: width of the vector.
    """

    id: str
    dim: int

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> floating (B, D), on any device."""
        ...


class Shared(Generic[T]):
    """Holds a heavy object that deep copies of the holder go on sharing, and that is no part of a metric's state."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class FeatureMetric(Metric):
    """A metric of the vectors that one network gives to images.

    Args:
        features: the network; shared by copies.
    """

    is_differentiable = False
    full_state_update = False
    #: Name of the metric in :attr:`key`.
    name: str

    def __init__(self, features: ImageFeatures, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._features = Shared(features)

    @property
    def features(self) -> ImageFeatures:
        return self._features.value

    @property
    def key(self) -> str:
        """Metric and protocol, for instance ``fid@tf-299``: numbers of unlike protocols do not compare."""
        return f"{self.name}@{self.features.id}"

    @torch.no_grad()
    def describe(self, images: Tensor) -> Tensor:
        """(B, D) float64 vectors, on the metric's device.

        Args:
            images: uint8 (B, 3, H, W), or the (B, D) vectors themselves: with several metrics on one set of images,
                the network then runs once.

        Raises:
            ValueError: if ``images`` are neither, or a vector is not finite.
        """
        vectors = images if images.is_floating_point() else self.features(checked_images(images))
        if vectors.ndim != 2 or vectors.shape[1] != self.features.dim:
            raise ValueError(
                f"images must be uint8 (B, 3, height, width) or features (B, {self.features.dim}); "
                f"got {images.dtype} {tuple(images.shape)}."
            )
        if not bool(vectors.isfinite().all()):
            raise ValueError(f"{self.features.id} gave features that are not finite; half precision may overflow.")
        return vectors.cpu().double().to(self.device)


class PooledPatchFeatures:
    """Mean and standard deviation over the patches of an image: any patch features serve, the embedded ones too.

    Args:
        patches: for instance ``MiniFeatures()``; the id becomes ``mini-features``.
    """

    def __init__(self, patches: PatchFeatures) -> None:
        self._patches = patches
        self.id = f"{patches.id}-features"
        self.dim = 2 * patches.dim

    def __call__(self, images: Tensor) -> Tensor:
        grids = self._patches(list(checked_images(images)))
        pooled = [torch.cat([g.mean(dim=(0, 1)), g.flatten(0, 1).std(dim=0, correction=0)]) for g in grids]
        return torch.stack(pooled)


class PixelFeatures:
    """The image itself, small: colours 0...1 of ``side`` x ``side`` places.

    Args:
        side: places in each direction; the aspect is not kept.
    """

    def __init__(self, side: int = 32) -> None:
        self.side = side
        self.id = f"pixels-{side}"
        self.dim = 3 * side**2

    def __call__(self, images: Tensor) -> Tensor:
        return resize(checked_images(images).float() / 255, self.side).flatten(1)


@dataclass(frozen=True)
class View:
    """Preprocessing for a network: short side resized with antialiasing, centre cut out, colours normalised.

    Attributes:
        short_side: pixels after resizing.
        side: of the square that is cut out.
        mean: of red, green and blue, in 0...1.
        std: likewise.
    """

    short_side: int
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, 3, side, side) float32; resized in bytes, as Pillow does."""
        seen = resize_short_side(checked_images(images), self.short_side, mode="bicubic")
        top, left = ((length - self.side) // 2 for length in seen.shape[-2:])
        cut = seen[..., top : top + self.side, left : left + self.side].float() / 255
        mean, std = (cut.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (cut - mean) / std


def checked_images(images: Tensor) -> Tensor:
    """The same images.

    Raises:
        ValueError: unless they are uint8 (B, 3, height, width).
    """
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images must be uint8 (B, 3, height, width), got {images.dtype} {tuple(images.shape)}.")
    return images


def unit(vectors: Tensor) -> Tensor:
    """Vectors of length 1; a zero vector stays zero."""
    return F.normalize(vectors, dim=-1)


def unit_float64(vectors: Tensor) -> Tensor:
    """Likewise, in float64 on the CPU: MPS has no float64."""
    return unit(vectors.cpu().double())
