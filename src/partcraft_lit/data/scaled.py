"""Scale augmentation: each image is shrunk onto a grey canvas or enlarged and cropped before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import torch
from torch import Tensor

from partcraft_lit.core.images import clamp_aspect, resize
from partcraft_lit.core.labels import axis, vote
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.store import stable_hash
from partcraft_lit.core.types import ExampleTransform, ImageSource, TrainingExample

#: Bump when the same view would give other pixels.
_VERSION = 1
#: Grey of the canvas.
_EMPTY = 127
#: Label of positions outside the image or at its edge.
NOWHERE = 255
#: Views below this share of the canvas, and above its whole size, get a prefix in the caption.
_FAR = 0.6
_FAR_WORDS = ("a far away ", "very small ")
_NEAR_WORDS = ("zoomed in ", "close up ")


@dataclass(frozen=True)
class View:
    """One rendering of an image's square crop.

    Attributes:
        size: side of the square in pixels; cropped if larger than the canvas.
        top, left: its corner on the canvas, negative if cropped.
        across: 0...1, relative position of the square in the image.
        words: caption prefix, or "".
    """

    size: int
    top: int
    left: int
    across: float
    words: str


def draw_view(resolution: int, generator: torch.Generator) -> View:
    """66 % of all views draw a scale of 1/3 to 1 and are that large below 0.6, else full size; the others 1.2 to 1.4.

    So 26 % have a margin.

    Source: Custom Diffusion (arXiv 2212.04488), released data set. Differs: no.
    """
    chance = torch.rand(6, generator=generator, dtype=torch.float64).tolist()
    low, high = (1 / 3, 1.0) if chance[0] < 0.66 else (1.2, 1.4)
    size = round(resolution * (low + (high - low) * chance[1]))
    if _FAR * resolution <= size <= resolution:
        size = resolution
    spare = resolution - size  # negative where the square is cut
    top, left = (int(share * (abs(spare) + 1)) * (1 if spare >= 0 else -1) for share in chance[2:4])
    words = _FAR_WORDS if size < _FAR * resolution else _NEAR_WORDS if size > resolution else ("", "")
    return View(size, top, left, chance[4], words[int(chance[5] * 2)])


class ScaledImages:
    """Several scaled views of each image of a source: an image source of square images.

    Args:
        source: the images.
        variants: views per image.
        resolution: side of the canvas in pixels.
        factor: pixels per latent.
        seed: of the views; an image's views depend on the seed and its bytes only.
    """

    def __init__(self, source: ImageSource, variants: int, resolution: int, factor: int, seed: int) -> None:
        self.class_noun, self.class_names = source.class_noun, source.class_names
        self._source, self._variants = source, variants
        self._resolution, self._factor = resolution, factor
        self.views: list[View] = [
            draw_view(resolution, torch_generator(seed, "view", source.content_hash(index), variant))
            for index in range(len(source))
            for variant in range(variants)
        ]

    def __len__(self) -> int:
        return len(self.views)

    def image(self, index: int) -> Tensor:
        """(3, resolution, resolution) uint8."""
        return render(self._source.image(index // self._variants), self.views[index], self._resolution)

    def name(self, index: int) -> str:
        return f"{self._source.name(index // self._variants)}, view {index % self._variants}"

    def content_hash(self, index: int) -> str:
        whole = self._source.content_hash(index // self._variants)
        return stable_hash("scaled", whole, *astuple(self.views[index]), self._resolution, _VERSION)

    def label(self, index: int) -> int | None:
        return self._source.label(index // self._variants)

    def label_maps(self, whole: Sequence[Tensor]) -> list[Tensor]:
        """One label per latent of each view, ``NOWHERE`` outside the image and at its edge.

        Args:
            whole: one label map per image, of any grid size.
        """
        side = self._resolution // self._factor
        return [
            place_labels(whole[index // self._variants], view, side, self._factor)
            for index, view in enumerate(self.views)
        ]


def render(image: Tensor, view: View, resolution: int) -> Tensor:
    """(3, height, width) uint8 -> (3, resolution, resolution) uint8."""
    square = resize(_square(clamp_aspect(image), view.across), view.size)
    canvas = torch.full((3, resolution, resolution), _EMPTY, dtype=torch.uint8)
    if view.size <= resolution:
        canvas[:, view.top : view.top + view.size, view.left : view.left + view.size] = square
        return canvas
    return square[:, -view.top : resolution - view.top, -view.left : resolution - view.left]


def place_labels(label_map: Tensor, view: View, side: int, factor: int) -> Tensor:
    """(side, side) uint8: the label of most of each latent that lies inside the image.

    Where the image is smaller than the canvas, the latents at its edge are left out too, as in the released code.
    """
    height, width = label_map.shape
    short = min(height, width)
    down, right = (min(int(view.across * (length - short + 1)), length - short) for length in (height, width))
    # In units of 1 / size of a cell of the map, a pixel of the canvas is as long as ``short``.
    rows, columns = (
        axis(first * view.size - corner * short, factor * short, side, view.size, cells, label_map.device)
        for first, corner, cells in ((down, view.top, height), (right, view.left, width))
    )
    labels = vote(label_map.to(torch.uint8), rows, columns)
    shown = torch.zeros(side, side, dtype=torch.bool)
    shown[_inside(view.top, view.size, side, factor), _inside(view.left, view.size, side, factor)] = True
    return labels.masked_fill(~shown, NOWHERE)


def _inside(start: int, size: int, side: int, factor: int) -> slice:
    first, last = max(0, -(-start // factor)), min(side, (start + size) // factor)
    margin = 1 if size < side * factor and last - first > 2 else 0
    return slice(first + margin, last - margin)


def _square(image: Tensor, across: float) -> Tensor:
    height, width = image.shape[-2:]
    short = min(height, width)
    top, left = (min(int(across * (length - short + 1)), length - short) for length in (height, width))
    return image[..., top : top + short, left : left + short]


class ScaledViewTransform:
    """Adds the scale to the caption and restricts the diffusion loss to the image on the canvas.

    Picklable, for loader workers.

    Args:
        words: caption prefix of each view.
        variants: views per image.
    """

    def __init__(self, words: Sequence[str], variants: int) -> None:
        self._words, self._variants = list(words), variants

    def __call__(self, example: TrainingExample, generator: torch.Generator) -> TrainingExample:
        words = self._words[example.image_id]
        return replace(
            example,
            prompt=words + example.prompt.removeprefix("a ") if words else example.prompt,
            loss_region=(example.label_map != NOWHERE).float(),
            image_id=example.image_id // self._variants,
        )


class ComposedTransform:
    """Applies one example transform after another; the second may be None."""

    def __init__(self, first: ExampleTransform, second: ExampleTransform | None) -> None:
        self._first, self._second = first, second

    def __call__(self, example: TrainingExample, generator: torch.Generator) -> TrainingExample:
        example = self._first(example, generator)
        return self._second(example, generator) if self._second is not None else example
