"""Quality of discovered parts against ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.labels import resize_labels
from partcraft_lit.core.types import ABSENT, GroundTruth


class HasGroundTruth(Protocol):
    """The part of :class:`~partcraft_lit.core.types.GroundTruthSource` that is scored against."""

    part_names: Sequence[str]

    def __len__(self) -> int: ...

    def truth(self, index: int) -> GroundTruth: ...


@dataclass(frozen=True)
class PartQuality:
    """Scores of label maps and codes against the truth, over all images together.

    Attributes:
        foreground_iou: of everything that is not background.
        part_iou: per true part, after the matching that makes their sum largest; 0 for a true part that is left over.
        mean_part_iou: mean over true parts, the background not counted.
        match: true part name -> discovered part 1...M, or None.
        nmi: per true part: normalized mutual information of the matched part's codes and the part's species, over
            images that show both; NaN where no image does. It rises by chance as codes become many and images few: read
            it beside ``nmi_shuffled``.
        mean_nmi: mean over the true parts that have one.
        nmi_shuffled: the mean for codes that were shuffled among images.
    """

    foreground_iou: float
    part_iou: dict[str, float]
    mean_part_iou: float
    match: dict[str, int | None]
    nmi: dict[str, float]
    mean_nmi: float
    nmi_shuffled: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def score_parts(source: HasGroundTruth, label_maps: Sequence[Tensor], codes: Tensor) -> PartQuality:
    """Compares discovered parts with the truth.

    Args:
        source: gives the truth of as many images as there are label maps.
        label_maps: (grid height, grid width) uint8 each, 0 background, 1...M; brought to the truth's resolution by
            nearest cell.
        codes: (N, M + 1), ``ABSENT`` where absent.

    Raises:
        ValueError: if the numbers of images differ.
    """
    if not len(source) == len(label_maps) == len(codes):
        raise ValueError(f"{len(source)} images, {len(label_maps)} label maps and {len(codes)} rows of codes differ.")
    truths = [source.truth(index) for index in range(len(source))]
    names = list(source.part_names)
    counts = confusion([truth.label_map for truth in truths], label_maps, len(names) + 1, codes.shape[1])
    iou = pairwise_iou(counts)
    rows, columns = linear_sum_assignment(iou[1:, 1:], maximize=True)
    match: dict[str, int | None] = dict.fromkeys(names)
    match |= {names[row]: int(column) + 1 for row, column in zip(rows, columns, strict=True)}
    part_iou = {name: 0.0 if part is None else float(iou[names.index(name) + 1, part]) for name, part in match.items()}
    species = torch.tensor([truth.species for truth in truths])
    nmi = _code_scores(names, match, species, codes)
    order = torch.randperm(len(codes), generator=torch.Generator().manual_seed(0))
    shuffled = _code_scores(names, match, species, codes[order])
    return PartQuality(
        foreground_iou=_foreground_iou(counts),
        part_iou=part_iou,
        mean_part_iou=sum(part_iou.values()) / len(part_iou),
        match=match,
        nmi=nmi,
        mean_nmi=_mean(nmi),
        nmi_shuffled=_mean(shuffled),
    )


def confusion(truths: Sequence[Tensor], label_maps: Sequence[Tensor], num_true: int, num_predicted: int) -> Tensor:
    """(num_true, num_predicted) numbers of pixels with each pair of labels, the background being label 0 of both."""
    counts = torch.zeros(num_true * num_predicted, dtype=torch.long)
    for truth, label_map in zip(truths, label_maps, strict=True):
        seen = clamp_aspect(truth).long()
        predicted = resize_labels(label_map.long(), seen.shape)
        counts += torch.bincount((seen * num_predicted + predicted).flatten(), minlength=len(counts))
    return counts.view(num_true, num_predicted)


def pairwise_iou(counts: Tensor) -> Tensor:
    """IoU of each pair of labels from their (true, predicted) pixel counts; 0 for two empty labels."""
    union = counts.sum(dim=1, keepdim=True) + counts.sum(dim=0, keepdim=True) - counts
    return counts.double() / union.clamp_min(1)


def normalized_mutual_information(first: Tensor, second: Tensor) -> float:
    """Mutual information of two labellings over the mean of their entropies: 0 independent, 1 equal up to names.

    Args:
        first, second: (N,) integers.

    Returns:
        NaN for N = 0, where scikit-learn has 1; 1 if both labellings have one label only.
    """
    return float(normalized_mutual_info_score(first.numpy(), second.numpy())) if len(first) else float("nan")


def _foreground_iou(counts: Tensor) -> float:
    both = int(counts[1:, 1:].sum())
    either = int(counts.sum() - counts[0, 0])
    return both / either if either else 1.0


def _code_scores(
    names: Sequence[str], match: dict[str, int | None], species: Tensor, codes: Tensor
) -> dict[str, float]:
    scores: dict[str, float] = {}
    for index, name in enumerate(names):
        part = match[name]
        if part is None:
            scores[name] = float("nan")
            continue
        both = (species[:, index] != ABSENT) & (codes[:, part] != ABSENT)
        scores[name] = normalized_mutual_information(species[both, index], codes[both, part])
    return scores


def _mean(scores: dict[str, float]) -> float:
    known = [score for score in scores.values() if score == score]
    return sum(known) / len(known) if known else float("nan")
