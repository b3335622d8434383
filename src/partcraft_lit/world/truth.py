"""Judges drawn birds by an oracle: does the generated wing look like the requested species?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from partcraft_lit.core.types import ABSENT
from partcraft_lit.evaluation.truth import PerfectScores, true_hybrids
from partcraft_lit.metrics.composition import Targets
from partcraft_lit.world.oracle import LookOracle, PartAccuracy, SpeciesOracle

_COLOR = 1


class DrawnSpecies(Protocol):
    """A source of drawn birds; an image's class is its species.

    Attributes:
        part_names: the true parts.
        looks: (species, parts, 3) look of every part of every species.
    """

    part_names: Sequence[str]
    looks: Tensor

    def label(self, index: int) -> int: ...


class OracleTruth:
    """Reads generated images with an oracle that knows ground truth only, not the part predictor.

    Args:
        source: drawn birds.
        match: true part name -> discovered part, as discovery's quality gives it; None for a part without a match.
    """

    def __init__(self, source: DrawnSpecies, match: Mapping[str, int | None]) -> None:
        self._source: Any = source
        self._matched = dict(match)
        self._match = [match.get(name) for name in source.part_names]
        self._oracle = SpeciesOracle(looks=source.looks)

    @property
    def hash(self) -> str:
        """Of the oracle and of the looks that it tells apart."""
        digest = hashlib.sha256(self._oracle.path.read_bytes())
        digest.update(repr(self._oracle.looks.tolist()).encode())
        return digest.hexdigest()

    def tally(self) -> OracleTally:
        """A new, empty tally."""
        return OracleTally(PartAccuracy(self._oracle))

    def perfect(self, targets: Targets) -> PerfectScores | None:
        """Scores of a perfect composer: the oracle's own errors, and parts that a pose hides.

        No generated image can be expected to score higher. None where such images cannot be rendered.
        """
        true = true_hybrids(self._source, targets, {"quality": {"match": self._matched}})
        if true is None:
            return None
        tally = self.tally()
        rows = tally.update(true, self.requested(targets))
        return PerfectScores(tally.compute(), rows)

    def requested(self, targets: Targets) -> Tensor:
        """(I, true parts) requested species of each part, ``ABSENT`` for none."""
        species = torch.full((len(targets), len(self._match)), ABSENT, dtype=torch.long)
        for column, part in enumerate(self._match):
            if part is None:
                continue
            for row in range(len(targets)):
                if targets.codes[row, part] != ABSENT:
                    label = self._source.label(int(targets.sources[row, part]))
                    species[row, column] = ABSENT if label is None else label
        return species


class OracleTally:
    """Part accuracy of images, all together and one by one."""

    def __init__(self, metric: PartAccuracy) -> None:
        self._metric = metric

    def update(self, images: Tensor, requested: Tensor) -> list[dict[str, float]]:
        """Adds images, and gives the share of right parts of each of them.

        Args:
            images: (B, 3, height, width) uint8.
            requested: (B, true parts) requested species, ``ABSENT`` for none.

        Returns:
            "part_accuracy/all" and one key per true part: 1, 0, or NaN where nothing was requested.
        """
        reading = self._metric.oracle.read(images)
        self._metric.update(reading, requested)
        right = torch.where(requested == ABSENT, torch.nan, (reading.species == requested).double())  # (B, true parts)
        names = self._metric.oracle.part_names
        return [
            {"part_accuracy/all": float(row.nanmean()), **{f"part_accuracy/{n}": float(v) for n, v in zip(names, row)}}
            for row in right
        ]

    def compute(self) -> dict[str, float]:
        """``part_accuracy`` over all parts, one per part, and ``color_accuracy``."""
        values = {key: float(value) for key, value in self._metric.compute().items()}
        per_part = {
            f"part_accuracy_{key.removeprefix('part/')}": v for key, v in values.items() if key.startswith("part/")
        }
        return {
            "part_accuracy": values["all"],
            "color_accuracy": values["color"],
            "visible": values["seen"],
            **per_part,
        }


def right_colors(images: Sequence[Tensor], looks: Tensor) -> Tensor:
    """(I,) share of the parts of a bird that an oracle sees in the right colour.

    Args:
        images: (3, height, width) uint8, of one size.
        looks: (parts, 3) shape, colour and texture of each part.
    """
    reading = LookOracle().read(torch.stack(list(images)))
    right = (reading.presence >= 0.5) & (reading.looks()[:, :, _COLOR] == looks[None, :, _COLOR])
    return right.double().mean(dim=1)
