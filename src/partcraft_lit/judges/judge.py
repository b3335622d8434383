"""What a judge of parts is asked, and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class PartView:
    """An image and where its parts are.

    Attributes:
        image: (3, height, width) uint8.
        label_map: (grid height, grid width), part of each place of the whole image.
    """

    image: Tensor
    label_map: Tensor


@dataclass(frozen=True)
class Comparison:
    """One question: does the generated image show the part of the source?

    Attributes:
        part: index of the part, as label maps have it.
        name: of the part, in words.
        noun: what the images show, in words.
        source: the image that the part was taken from.
        generated: the image that is judged; for calibration, another real one.
    """

    part: int
    name: str
    noun: str
    source: PartView
    generated: PartView


class PartJudge(Protocol):
    """A frozen network that compares a part of two images.

    Attributes:
        id: what network judges, for logs and reports.
        hash: of everything that decides its answers.
    """

    id: str
    hash: str

    def __call__(self, comparisons: Sequence[Comparison]) -> Tensor:
        """(B,) float64 on the CPU in 0...1, high for the same part; NaN where it does not see what it would compare."""
        ...
