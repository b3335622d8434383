"""How well a judge tells codes of a part apart on real images, and what its scores are worth there."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from partcraft_lit.core.types import ABSENT

#: The area under the ROC curve from which on a judge reads a part; chance is 0.5.
READABLE_AUC = 0.65
#: And by how many standard errors of a judge that guesses it lies above chance.
_ERRORS_ABOVE_CHANCE = 2.0

Pair = tuple[int, int]


@dataclass(frozen=True)
class PartCalibration:
    """A judge's scores of one part on pairs of real images.

    Attributes:
        auc: probability that a pair with one code scores higher than one with two codes; NaN without pairs.
        same: mean score of pairs with one code.
        different: mean score of pairs with two codes.
        num_same: pairs with one code.
        num_different: pairs with two codes.
    """

    auc: float
    same: float
    different: float
    num_same: int
    num_different: int

    @property
    def readable(self) -> bool:
        """Whether the judge tells codes of this part apart: well enough, and not by luck."""
        least = max(READABLE_AUC, 0.5 + _ERRORS_ABOVE_CHANCE * self._error_of_chance)
        return self.auc >= least and self.same > self.different

    @property
    def _error_of_chance(self) -> float:
        """Standard deviation of the AUC of random scores (Mann and Whitney, 1947)."""
        same, different = self.num_same, self.num_different
        return math.sqrt((same + different + 1) / (12 * same * different)) if same and different else math.inf

    def calibrated(self, scores: Tensor) -> Tensor:
        """Scores on the scale of real pairs: mean 0 with two codes, mean 1 with one; NaN if the part is unreadable."""
        if not self.readable:
            return torch.full_like(scores, torch.nan)
        return (scores - self.different) / (self.same - self.different)


def calibration_of(same: Tensor, different: Tensor) -> PartCalibration:
    """From (n,) scores of pairs with one code and (m,) of pairs with two codes; NaN does not count."""
    same, different = same[~same.isnan()], different[~different.isnan()]
    return PartCalibration(
        auc=area_under_curve(same, different),
        same=float(same.mean()),
        different=float(different.mean()),
        num_same=len(same),
        num_different=len(different),
    )


def area_under_curve(positive: Tensor, negative: Tensor) -> float:
    """Probability that a positive's score is above a negative's, equal ones counting half; NaN without both."""
    if not (len(positive) and len(negative)):
        return math.nan
    from sklearn.metrics import roc_auc_score  # takes a second

    labels = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))])
    return float(roc_auc_score(labels.numpy(), torch.cat([positive, negative]).numpy()))


def draw_pairs(codes: Tensor, count: int, generator: torch.Generator) -> tuple[list[Pair], list[Pair]]:
    """Pairs of images with one code of a part, and as many with two codes; each two share an image.

    Args:
        codes: (N,) code of the part in each image, ``ABSENT`` where it has none.
        count: of each kind, at most; no pair with one code is drawn twice.
        generator: source of randomness.
    """
    code_of = codes.tolist()
    images = defaultdict(list)
    for image, code in enumerate(code_of):
        if code != ABSENT:
            images[code].append(image)
    shown = [image for of_code in images.values() for image in of_code]
    firsts = sorted(image for of_code in images.values() if 1 < len(of_code) < len(shown) for image in of_code)
    same: dict[Pair, Pair] = {}
    for _ in range(4 * count if firsts else 0):  # with few images, most are repetitions
        first = _one_of(firsts, generator)
        second = other = first
        while second == first:
            second = _one_of(images[code_of[first]], generator)
        while code_of[other] == code_of[first]:
            other = _one_of(shown, generator)
        if len(same) < count:
            same.setdefault((min(first, second), max(first, second)), (first, other))
    return list(same), list(same.values())


def _one_of(items: Sequence[int], generator: torch.Generator) -> int:
    return items[int(torch.randint(len(items), (1,), generator=generator))]
