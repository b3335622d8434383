"""Scores that need the truth: does the generated wing have the look of the species that was asked for?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from partcraft_lit.metrics.composition import Targets
from partcraft_lit.metrics.oracle import PartAccuracy, SpeciesOracle
from partcraft_lit.types import ABSENT, ImageSource
from partcraft_lit.zoo.looks import BIRD


@runtime_checkable
class KnownLooks(Protocol):
    """A source of drawn species.

    Attributes:
        part_names: the true parts.
        looks: (species, parts, 3) look of every part of every species.
    """

    part_names: Sequence[str]
    looks: Tensor


@runtime_checkable
class Renders(Protocol):
    """A source that can draw the true picture of a hybrid."""

    part_names: Sequence[str]

    def render(self, species: Tensor, indices: Sequence[int]) -> Any: ...


class TruthScorer:
    """Reads generated pictures with an oracle that knows ground truth only, not the part predictor.

    Args:
        source: drawn species; a picture's class is its species.
        match: true part name -> discovered part, as discovery's quality gives it; None for a part without a match.
    """

    def __init__(self, source: KnownLooks, match: Mapping[str, int | None]) -> None:
        self._labels = cast(ImageSource, source)
        self._matched = dict(match)
        self._match = [match.get(name) for name in source.part_names]
        self._oracle = SpeciesOracle(looks=source.looks)

    @classmethod
    def of(cls, source: ImageSource, facts: Mapping[str, Any]) -> TruthScorer | None:
        """For sources whose truth the oracle can read: birds of the zoo; None for all others."""
        if not isinstance(source, KnownLooks) or tuple(source.part_names) != BIRD.part_names:
            return None
        return cls(source, facts["quality"]["match"])

    @property
    def hash(self) -> str:
        """Of the oracle and of the looks that it tells apart."""
        digest = hashlib.sha256(self._oracle.path.read_bytes())
        digest.update(repr(self._oracle.looks.tolist()).encode())
        return digest.hexdigest()

    def accuracy(self) -> PartAccuracy:
        """A new metric."""
        return PartAccuracy(self._oracle)

    def perfect(self, targets: Targets) -> dict[str, float]:
        """What the oracle says of the pictures of a perfect composer: its own errors, and parts that a pose hides.

        No generated picture can be expected to score higher. Empty where such pictures cannot be drawn.
        """
        true = true_hybrids(self._labels, targets, {"quality": {"match": self._matched}})
        if true is None:
            return {}
        accuracy = self.accuracy()
        accuracy.update(true, self.species_of(targets))
        return as_numbers(accuracy)

    def species_of(self, targets: Targets) -> Tensor:
        """(I, true parts) species that each part was asked to come from, ``ABSENT`` where none was."""
        wanted = torch.full((len(targets), len(self._match)), ABSENT, dtype=torch.long)
        for column, part in enumerate(self._match):
            if part is None:
                continue
            for row in range(len(targets)):
                if targets.codes[row, part] != ABSENT:
                    label = self._labels.label(int(targets.sources[row, part]))
                    wanted[row, column] = ABSENT if label is None else label
        return wanted


def image_rows(metric: PartAccuracy, images: Tensor, species: Tensor) -> list[dict[str, float]]:
    """Adds pictures to the metric, and gives the shares of right parts of each of them.

    Args:
        metric: reads the pictures.
        images: (B, 3, height, width) uint8.
        species: (B, true parts) species asked for, ``ABSENT`` where none was.

    Returns:
        "part_accuracy/all" and one key per true part: 1, 0, or NaN where nothing was asked for.
    """
    reading = metric.oracle.read(images)
    metric.update(reading, species)
    right = torch.where(species == ABSENT, torch.nan, (reading.species == species).double())  # (B, true parts)
    names = metric.oracle.part_names
    return [
        {"part_accuracy/all": float(row.nanmean()), **{f"part_accuracy/{n}": float(v) for n, v in zip(names, row)}}
        for row in right
    ]


def as_numbers(metric: PartAccuracy) -> dict[str, float]:
    """``part_accuracy`` over all parts, one per part, and ``color_accuracy``."""
    values = {key: float(value) for key, value in metric.compute().items()}
    per_part = {f"part_accuracy_{key.removeprefix('part/')}": v for key, v in values.items() if key.startswith("part/")}
    return {"part_accuracy": values["all"], "color_accuracy": values["color"], "visible": values["seen"], **per_part}


def true_hybrids(source: ImageSource, targets: Targets, facts: Mapping[str, Any]) -> Tensor | None:
    """(I, 3, H, W) pictures of a perfect composer, in the pose of the background's image; None if unknown.

    Discovered parts stand for the true ones that they were matched with; a true part without a match keeps the species
    of the first image.
    """
    if not isinstance(source, Renders) or "quality" not in facts:
        return None
    match: Mapping[str, int | None] = facts["quality"]["match"]
    species = torch.empty(len(targets), len(source.part_names), dtype=torch.long)
    for column, name in enumerate(source.part_names):
        part = match.get(name)
        givers = targets.sources[:, 0 if part is None else part]
        species[:, column] = torch.tensor([source.label(int(image)) for image in givers])
    images: Tensor = source.render(species, targets.sources[:, 0].tolist()).images
    return images
