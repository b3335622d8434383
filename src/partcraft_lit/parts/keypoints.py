"""Quality of discovered parts against annotated boxes and keypoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from partcraft_lit.core.images import kept_window
from partcraft_lit.core.types import BACKGROUND, Annotation
from partcraft_lit.parts.quality import normalized_mutual_information

#: Label of a point outside the label map.
OUTSIDE = -1


@dataclass(frozen=True)
class AnnotationQuality:
    """Scores of label maps against boxes and keypoints, over all images; NaN where nothing was marked.

    Attributes:
        images: how many were compared.
        box_iou: mean intersection over union of the box around the predicted foreground and the box around all objects.
        box_found: share of images in which that is at least one half.
        keypoint_in_foreground: share of visible keypoints that lie on a part: what one part for everything would reach,
            hence the upper bound of the accuracies.
        keypoint_accuracy: share of visible keypoints that lie in the part of their kind, which is the part that most
            keypoints of this kind lie in; several kinds may share a part.
        keypoint_accuracy_paired: the same for kinds and parts matched one to one, over the matched kinds only.
        keypoint_nmi: normalized mutual information of a keypoint's kind and the part (or background) it lies in. One
            part for everything scores about 0 here.
        part_of: kind of keypoint -> its part 1...M, None if it never lies on one.
        accuracy_of: kind of keypoint -> its share of ``keypoint_accuracy``.
        holds: part 1...M -> kinds of keypoints that it is the part of.
    """

    images: int
    box_iou: float
    box_found: float
    keypoint_in_foreground: float
    keypoint_accuracy: float
    keypoint_accuracy_paired: float
    keypoint_nmi: float
    part_of: dict[str, int | None]
    accuracy_of: dict[str, float]
    holds: dict[int, tuple[str, ...]]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def score_annotations(
    annotations: Sequence[Annotation], label_maps: Sequence[Tensor], num_parts: int, names: Sequence[str]
) -> AnnotationQuality:
    """Compares discovered parts with what people marked.

    Args:
        annotations: one per image.
        label_maps: (grid height, grid width) uint8 each, 0 background, 1...M, over the image's kept window.
        num_parts: M.
        names: of the kinds of keypoints; empty if there are none.

    Raises:
        ValueError: if the numbers of images differ.
    """
    if len(annotations) != len(label_maps):
        raise ValueError(f"{len(annotations)} annotations and {len(label_maps)} label maps differ.")
    overlaps = torch.tensor([_box_overlap(*pair) for pair in zip(annotations, label_maps) if len(pair[0].boxes)])
    labels, visible = _labels_at_keypoints(annotations, label_maps, len(names))
    counts = keypoint_counts(labels, visible, num_parts)
    part_of, accuracies = majority_parts(counts)
    total = counts.sum()
    kinds = torch.arange(len(names)).expand(len(labels), -1)[visible]
    return AnnotationQuality(
        images=len(annotations),
        box_iou=_share(overlaps.sum(), len(overlaps)),
        box_found=_share((overlaps >= 0.5).sum(), len(overlaps)),
        keypoint_in_foreground=_share(counts[:, 1:].sum(), total),
        keypoint_accuracy=_share(sum(float(counts[row, part]) for row, part in enumerate(part_of) if part), total),
        keypoint_accuracy_paired=paired_accuracy(counts),
        keypoint_nmi=normalized_mutual_information(kinds, labels[visible]),
        part_of=dict(zip(names, part_of, strict=True)),
        accuracy_of=dict(zip(names, accuracies, strict=True)),
        holds=_holds(names, part_of),
    )


def part_at(label_map: Tensor, size: tuple[int, int], points: Tensor) -> Tensor:
    """The label at points of the image that a label map was read from.

    Args:
        label_map: (grid height, grid width), over the kept window of the image.
        size: (height, width) of the image in pixels.
        points: (P, 2) x and y in its pixels.

    Returns:
        (P,) int64, ``OUTSIDE`` for points outside the window.
    """
    top, left, height, width = kept_window(*size)
    rows = ((points[:, 1].double() - top) * label_map.shape[0] / height).floor().long()
    columns = ((points[:, 0].double() - left) * label_map.shape[1] / width).floor().long()
    inside = (rows >= 0) & (rows < label_map.shape[0]) & (columns >= 0) & (columns < label_map.shape[1])
    labels = torch.full((len(points),), OUTSIDE)
    labels[inside] = label_map[rows[inside], columns[inside]].long()
    return labels


def keypoint_counts(labels: Tensor, visible: Tensor, num_parts: int) -> Tensor:
    """How often each kind of keypoint lies in each part.

    Args:
        labels: (N, P) labels, 0...M.
        visible: (N, P) bool; others are not counted.
        num_parts: M.

    Returns:
        (P, M + 1) int64.
    """
    width = num_parts + 1
    kinds = torch.arange(labels.shape[1]).expand_as(labels)
    flat = (kinds * width + labels)[visible]
    return torch.bincount(flat, minlength=labels.shape[1] * width).view(-1, width)


def majority_parts(counts: Tensor) -> tuple[list[int | None], list[float]]:
    """The part that most keypoints of each kind lie in, and which share of them; of equal ones the first.

    Args:
        counts: (P, M + 1), the background first; no kind is assigned to it.

    Returns:
        Parts 1...M, None for a kind that lies on none; shares among all visible keypoints of the kind, NaN for none.
    """
    parts: list[int | None] = []
    shares: list[float] = []
    for row in counts:
        best = int(row[1:].argmax()) + 1
        parts.append(best if row[best] > 0 else None)
        shares.append(_share(row[best], row.sum()))
    return parts, shares


def paired_accuracy(counts: Tensor) -> float:
    """Share of keypoints in their part when kinds and parts are paired one to one so that this is largest.

    Args:
        counts: (P, M + 1), the background first. Kinds that remain without a part are left out.
    """
    rows, columns = linear_sum_assignment(counts[:, 1:], maximize=True)
    right = sum(int(counts[row, column + 1]) for row, column in zip(rows, columns, strict=True))
    return _share(right, sum(int(counts[row].sum()) for row in rows))


def foreground_box(label_map: Tensor, size: tuple[int, int]) -> Tensor | None:
    """(4,) left, top, right, bottom of the cells that are not background, in pixels; None without any."""
    mask = label_map != BACKGROUND
    if not bool(mask.any()):
        return None
    top, left, height, width = kept_window(*size)
    rows, columns = mask.any(dim=1).nonzero()[:, 0].double(), mask.any(dim=0).nonzero()[:, 0].double()
    down, right = height / label_map.shape[0], width / label_map.shape[1]  # pixels of a cell
    return torch.stack(
        [
            left + columns[0] * right,
            top + rows[0] * down,
            left + (columns[-1] + 1) * right,
            top + (rows[-1] + 1) * down,
        ]
    )


def box_iou(first: Tensor, second: Tensor) -> float:
    """Intersection over union of two (4,) boxes: left, top, right, bottom."""
    low, high = torch.maximum(first[:2], second[:2]), torch.minimum(first[2:], second[2:])
    both = (high - low).clamp_min(0).prod()
    either = (first[2:] - first[:2]).prod() + (second[2:] - second[:2]).prod() - both
    return float(both / either) if either > 0 else 0.0


def _box_overlap(annotation: Annotation, label_map: Tensor) -> float:
    box = foreground_box(label_map, annotation.size)
    boxes = annotation.boxes.double()
    around = torch.cat([boxes[:, :2].min(dim=0).values, boxes[:, 2:].max(dim=0).values])
    return 0.0 if box is None else box_iou(box, around)


def _labels_at_keypoints(
    annotations: Sequence[Annotation], label_maps: Sequence[Tensor], kinds: int
) -> tuple[Tensor, Tensor]:
    """(N, P) label at each keypoint, and which of them count: visible and inside the label map."""
    shape = (len(annotations), kinds)
    if kinds == 0:
        return torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    labels = torch.stack([part_at(m, a.size, a.keypoints) for a, m in zip(annotations, label_maps, strict=True)])
    return labels, torch.stack([a.visible for a in annotations]) & (labels != OUTSIDE)


def _holds(names: Sequence[str], part_of: Sequence[int | None]) -> dict[int, tuple[str, ...]]:
    parts = sorted({part for part in part_of if part is not None})
    return {part: tuple(name for name, its in zip(names, part_of, strict=True) if its == part) for part in parts}


def _share(part: Tensor | float, whole: Tensor | float) -> float:
    return float(part) / float(whole) if float(whole) else float("nan")
