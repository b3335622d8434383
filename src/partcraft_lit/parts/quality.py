"""How good discovered parts are, where the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.types import ABSENT, GroundTruth
from partcraft_lit.core.visualization import resize_labels


class Truthful(Protocol):
    """What this module needs of a :class:`~partcraft_lit.core.types.GroundTruthSource`."""

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
        nmi: per true part: normalised mutual information of the matched part's codes and the part's species, over
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


def score_parts(source: Truthful, label_maps: Sequence[Tensor], codes: Tensor) -> PartQuality:
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
    rows, columns = assign(iou[1:, 1:])
    match: dict[str, int | None] = dict.fromkeys(names)
    match |= {names[row]: column + 1 for row, column in zip(rows, columns, strict=True)}
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


def confusion(truths: Sequence[Tensor], label_maps: Sequence[Tensor], num_true: int, num_found: int) -> Tensor:
    """(num_true, num_found) numbers of pixels with each pair of labels, the background being label 0 of both."""
    counts = torch.zeros(num_true * num_found, dtype=torch.long)
    for truth, label_map in zip(truths, label_maps, strict=True):
        seen = clamp_aspect(truth).long()
        found = resize_labels(label_map, seen.shape, num_found)
        counts += torch.bincount((seen * num_found + found).flatten(), minlength=len(counts))
    return counts.view(num_true, num_found)


def pairwise_iou(counts: Tensor) -> Tensor:
    """Intersection over union of each pair of labels, from their (true, found) pixel counts; 0 for two empty labels."""
    union = counts.sum(dim=1, keepdim=True) + counts.sum(dim=0, keepdim=True) - counts
    return counts.double() / union.clamp_min(1)


def assign(gain: Tensor) -> tuple[list[int], list[int]]:
    """Pairs rows with columns so that the sum of ``gain`` is largest, as many pairs as the smaller side has.

    Args:
        gain: (rows, columns), finite.

    Returns:
        The rows in ascending order and the column of each.

    Source: the Hungarian method with potentials and shortest augmenting paths, as in Jonker and Volgenant, 1987;
    O(rows^2 * columns).
    """
    if gain.shape[0] > gain.shape[1]:
        columns, rows = assign(gain.T)
        pairs = sorted(zip(rows, columns, strict=True))
        return [row for row, _ in pairs], [column for _, column in pairs]
    cost = (-gain.double()).tolist()
    height, width = gain.shape
    row_of = _augment(cost, height, width)
    pairs = sorted((row, column) for column, row in enumerate(row_of) if row >= 0)
    return [row for row, _ in pairs], [column for _, column in pairs]


def _augment(cost: list[list[float]], height: int, width: int) -> list[int]:
    """The row that each column is given, -1 for none; one shortest augmenting path per row."""
    infinity = float("inf")
    row_potential, column_potential = [0.0] * height, [0.0] * width
    row_of = [-1] * width
    for row in range(height):
        least, previous, visited = [infinity] * width, [-1] * width, [False] * width
        current_row, current = row, -1
        while current_row >= 0:
            for column in range(width):
                if visited[column]:
                    continue
                reduced = cost[current_row][column] - row_potential[current_row] - column_potential[column]
                if reduced < least[column]:
                    least[column], previous[column] = reduced, current
            following = min((c for c in range(width) if not visited[c]), key=least.__getitem__)
            step = least[following]
            row_potential[row] += step
            for column in range(width):
                if visited[column]:
                    row_potential[row_of[column]] += step
                    column_potential[column] -= step
                else:
                    least[column] -= step
            visited[following] = True
            current, current_row = following, row_of[following]
        while current >= 0:
            before = previous[current]
            row_of[current] = row_of[before] if before >= 0 else row
            current = before
    return row_of


def normalised_mutual_information(first: Tensor, second: Tensor) -> float:
    """Mutual information of two labellings over the mean of their entropies: 0 independent, 1 equal up to names.

    Args:
        first, second: (N,) non-negative integers.

    Returns:
        NaN for no items; 1 if both labellings have one label only.
    """
    if len(first) == 0:
        return float("nan")
    _, rows = first.unique(return_inverse=True)
    _, columns = second.unique(return_inverse=True)
    width = int(columns.max()) + 1
    joint = torch.bincount(rows * width + columns, minlength=(int(rows.max()) + 1) * width).double()
    joint = joint.view(-1, width) / len(first)
    entropies = _entropy(joint.sum(dim=1)), _entropy(joint.sum(dim=0))
    mean = sum(entropies) / 2
    return 1.0 if mean == 0 else max((sum(entropies) - _entropy(joint)) / mean, 0.0)


def _entropy(probability: Tensor) -> float:
    return float(torch.special.entr(probability).sum())


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
        scores[name] = normalised_mutual_information(species[both, index], codes[both, part])
    return scores


def _mean(scores: dict[str, float]) -> float:
    known = [score for score in scores.values() if score == score]
    return sum(known) / len(known) if known else float("nan")
