"""Data sets that know the truth of their objects: what they offer to the scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from partcraft_lit.core.types import ImageSource
from partcraft_lit.metrics.composition import Targets


class TruthTally(Protocol):
    """Part accuracy over images, by a judge that knows ground truth only."""

    def update(self, images: Tensor, requested: Tensor) -> list[dict[str, float]]:
        """Adds (B, 3, height, width) uint8 images and their rows of ``Truth.requested``; returns their scores."""
        ...

    def compute(self) -> dict[str, float]:
        """Means over all images so far."""
        ...


class Truth(Protocol):
    """Judges generated images without the part predictor."""

    @property
    def hash(self) -> str:
        """Of everything that decides its verdicts."""
        ...

    def requested(self, targets: Targets) -> Tensor:
        """(I, true parts) requested values of each true part, ``ABSENT`` for none."""
        ...

    def tally(self) -> TruthTally:
        """A new, empty tally."""
        ...

    def perfect(self, targets: Targets) -> PerfectScores | None:
        """Scores of a perfect composer's images, an upper bound; None where these cannot be rendered."""
        ...


@dataclass(frozen=True)
class PerfectScores:
    """What a judge says of true drawings.

    Attributes:
        means: as of ``TruthTally.compute``.
        rows: one per image, as of ``TruthTally.update``.
    """

    means: dict[str, float]
    rows: list[dict[str, float]]


@runtime_checkable
class HasTruth(Protocol):
    """A data set whose generated images can be judged."""

    def judge(self, match: Mapping[str, int | None]) -> Truth | None:
        """A judge, or None; ``match`` maps each true part to the discovered one, None for a part without a match."""
        ...


@runtime_checkable
class HasHeldOut(Protocol):
    """A data set that knows more images of its classes than it trains on."""

    def held_out(self, count: int) -> ImageSource:
        """At least ``count`` images of the same classes, none of which is in the data set."""
        ...


@runtime_checkable
class Renders(Protocol):
    """A data set that can render the true image of a hybrid."""

    part_names: Sequence[str]

    def render(self, species: Tensor, indices: Sequence[int]) -> Any: ...


def truth_of(source: ImageSource, metadata: Mapping[str, Any]) -> Truth | None:
    """The judge of a data set, given what discovery wrote; None where the truth is not known."""
    return source.judge(metadata["quality"]["match"]) if isinstance(source, HasTruth) else None


def true_hybrids(source: ImageSource, targets: Targets, metadata: Mapping[str, Any]) -> Tensor | None:
    """(I, 3, H, W) images of a perfect composer, in the pose of the background's image; None if unknown.

    Discovered parts stand for the true ones that they were matched with; a true part without a match keeps the species
    of the first image.
    """
    if not isinstance(source, Renders) or "quality" not in metadata:
        return None
    match: Mapping[str, int | None] = metadata["quality"]["match"]
    species = torch.empty(len(targets), len(source.part_names), dtype=torch.long)
    for column, name in enumerate(source.part_names):
        part = match.get(name)
        givers = targets.sources[:, 0 if part is None else part]
        species[:, column] = torch.tensor([source.label(int(image)) for image in givers])
    images: Tensor = source.render(species, targets.sources[:, 0].tolist()).images
    return images
