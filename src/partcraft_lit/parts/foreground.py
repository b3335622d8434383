"""Chooses the patch clusters that are the object, by their position in the image."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from partcraft_lit.core.images import resize, short_side_size

#: A cell is central if both its coordinates, counted from the middle, are below this share of the half side.
CENTRE = 0.5
#: Contrast of a cluster that is twice as common in the middle as on the border.
CLEARLY_CENTRAL = 1 / 3
#: From here on the object stands out of its surroundings; below the second value it hardly does.
GOOD_CONFIDENCE, POOR_CONFIDENCE = 0.5, 0.2
#: Share of the image that an object may plausibly cover; outside, confidence falls.
PLAUSIBLE_AREA = (0.03, 0.75)


@dataclass(frozen=True)
class PatchPlaces:
    """Where sampled patches lie in their images.

    Attributes:
        image: (P,) index of the image.
        rows, cols: (P,) float, place of the cell's centre, -1...1 from the image's middle.
        border: (P,) bool, cells of the outermost ring.
        inwardness: (P,) 0...1, how much colour changes on the way in from the border: see :func:`inwardness`; None
            where it is not known.
    """

    image: Tensor
    rows: Tensor
    cols: Tensor
    border: Tensor
    inwardness: Tensor | None = None

    @property
    def central(self) -> Tensor:
        """(P,) bool."""
        return (self.rows.abs() < CENTRE) & (self.cols.abs() < CENTRE)

    @classmethod
    def of_cells(
        cls, cells: Tensor, heights: Tensor, widths: Tensor, images: Tensor, inward: Tensor | None = None
    ) -> PatchPlaces:
        """Cells by number, row by row, in grids of these sizes; all (P,)."""
        rows, cols = cells // widths, cells % widths
        return cls(
            image=images,
            rows=(rows + 0.5) / heights * 2 - 1,
            cols=(cols + 0.5) / widths * 2 - 1,
            border=(rows == 0) | (rows == heights - 1) | (cols == 0) | (cols == widths - 1),
            inwardness=inward,
        )


def inwardness(images: Sequence[Tensor], grids: Sequence[tuple[int, int]], side: int = 32) -> list[Tensor]:
    """How far each cell is from the border of the image: the geodesic distance in colour.

    A background that reaches the border and changes gradually is near it everywhere, also between an animal's legs; an
    object is a step away, wherever it stands.

    Args:
        images: (3, H, W) uint8 each.
        grids: height and width of the grid of cells of each.
        side: the shorter side of the downscaled image that distances are measured in.

    Returns:
        (height, width) float32 each; 1 is the farthest cell of the image, 0 its border.

    Source: the geodesic saliency of Wei et al., ECCV 2012, on pixels instead of superpixels.
    """
    small = [resize(pixels.float() / 255, short_side_size(pixels.shape[1], pixels.shape[2], side)) for pixels in images]
    alike: dict[torch.Size, list[int]] = defaultdict(list)
    for number, image in enumerate(small):
        alike[image.shape].append(number)
    distances: dict[int, Tensor] = {}
    for numbers in alike.values():
        costs = _least_cost(torch.stack([small[number] for number in numbers]))
        for number, cost in zip(numbers, costs, strict=True):
            whole = (cost / cost.max().clamp_min(1e-6)).expand(3, -1, -1)
            distances[number] = resize(whole, grids[number])[0]
    return [distances[number] for number in range(len(small))]


def _least_cost(small: Tensor) -> Tensor:
    """(B, 3, h, w) images -> (B, h, w) geodesic distance to the border.

    Ours, since scipy's Dijkstra takes one image at a time and adds in float64: dictionaries would change.
    """
    right = (small[..., 1:] - small[..., :-1]).square().sum(dim=1).sqrt()
    down = (small[..., 1:, :] - small[..., :-1, :]).square().sum(dim=1).sqrt()
    cost = torch.zeros(len(small), *small.shape[2:])
    cost[:, 1:-1, 1:-1] = torch.inf
    while True:
        before = cost.clone()
        cost[:, 1:] = torch.minimum(cost[:, 1:], cost[:, :-1] + down)
        cost[:, :-1] = torch.minimum(cost[:, :-1], cost[:, 1:] + down)
        cost[..., 1:] = torch.minimum(cost[..., 1:], cost[..., :-1] + right)
        cost[..., :-1] = torch.minimum(cost[..., :-1], cost[..., 1:] + right)
        if torch.equal(cost, before):
            return cost


@dataclass(frozen=True)
class ClusterEvidence:
    """Evidence for a cluster being the object.

    Attributes:
        area: its share of all patches.
        border: its share of the border's patches.
        centre: its share of the central patches.
        contrast: (centre - border) / (centre + border), -1...1.
        compactness: 1 - its spatial variance inside an image over that of all patches, -1...1.
        score: the weighted sum of contrast and compactness.
        inwardness: mean of its patches; NaN where it is not known.
    """

    area: float
    border: float
    centre: float
    contrast: float
    compactness: float
    score: float
    inwardness: float = float("nan")


@dataclass(frozen=True)
class ForegroundChoice:
    """The rule's answer.

    Attributes:
        is_foreground: (k,) bool.
        confidence: 0...1: share of the central patches that the object takes less its share of the border (Youden's J),
            lowered where the object would cover implausibly little or much. About 0 for clusters that ignore place.
        area: share of all patches that are the object.
        separation: share of the variance of inwardness that lies between object and background; NaN if not known.
        evidence: of every cluster.
    """

    is_foreground: Tensor
    confidence: float
    area: float
    separation: float
    evidence: tuple[ClusterEvidence, ...]

    def as_dict(self) -> dict[str, object]:
        return {
            "confidence": round(self.confidence, 4),
            "area": round(self.area, 4),
            **({"separation": round(self.separation, 4)} if self.separation == self.separation else {}),
            "clusters": [
                {"foreground": bool(flag)}
                | {name: round(value, 4) for name, value in asdict(evidence).items() if value == value}
                for flag, evidence in zip(self.is_foreground, self.evidence, strict=True)
            ],
        }


def choose_foreground(
    labels: Tensor, places: PatchPlaces, num_clusters: int, compactness_weight: float = 0.5
) -> ForegroundChoice:
    """Splits clusters into object and background.

    A cluster counts as the object if it is commoner in the middle than on the border, and if its patches lie close
    together inside an image. With two clusters the better one is the object. With more, they are split where their
    mean inwardness falls into two groups best; if that is not known, those of positive score are the object that are at
    least twice as common in the middle as on the border. At least one is left on either side.

    Args:
        labels: (P,) cluster of each sampled patch.
        places: where the patches lie.
        num_clusters: k >= 1; with 1 everything is foreground, at confidence 0.
        compactness_weight: weight of the second criterion against the first.
    """
    evidence = [_weigh(labels == cluster, places, compactness_weight) for cluster in range(num_clusters)]
    scores = torch.tensor([item.score for item in evidence])
    is_foreground = _far_from_border(evidence) if places.inwardness is not None else _clearly_central(evidence)
    if num_clusters == 2:
        is_foreground = torch.arange(2) == scores.argmax()
    elif num_clusters > 2:
        is_foreground[scores.argmax()] = True
        is_foreground[scores.argmin()] = False
    else:
        is_foreground[:] = True
    foreground = is_foreground[labels]
    area = float(foreground.float().mean())
    confidence = max(_share(foreground, places.central) - _share(foreground, places.border), 0.0) * _plausible(area)
    return ForegroundChoice(is_foreground, confidence, area, _separation(foreground, places), tuple(evidence))


def _weigh(member: Tensor, places: PatchPlaces, compactness_weight: float) -> ClusterEvidence:
    centre, border = _share(member, places.central), _share(member, places.border)
    contrast = (centre - border) / (centre + border) if centre + border > 0 else 0.0
    compactness = 1 - _spread(member, places) / max(_spread(torch.ones_like(member), places), 1e-12)
    compactness = min(max(compactness, -1.0), 1.0)
    score = contrast + compactness_weight * compactness
    inward = float("nan")
    if places.inwardness is not None:
        inward = float(places.inwardness[member].mean()) if bool(member.any()) else 0.0
    return ClusterEvidence(float(member.float().mean()), border, centre, contrast, compactness, score, inward)


def _clearly_central(evidence: list[ClusterEvidence]) -> Tensor:
    # of many clusters each is compact, so that alone is weak evidence
    return torch.tensor([item.contrast > CLEARLY_CENTRAL and item.score > 0 for item in evidence])


def _far_from_border(evidence: list[ClusterEvidence]) -> Tensor:
    """(k,) bool: the side of larger inwardness after the split with the largest variance between its sides.

    Source: Otsu, 1979, on clusters weighted by their area.
    """
    distance = torch.tensor([item.inwardness for item in evidence], dtype=torch.float64)
    area = torch.tensor([item.area for item in evidence], dtype=torch.float64)
    order = distance.argsort(stable=True)
    left, moment = area[order].cumsum(0), (area * distance)[order].cumsum(0)
    right, rest = left[-1] - left, moment[-1] - moment
    between = left * right * (moment / left.clamp_min(1e-12) - rest / right.clamp_min(1e-12)).square()
    threshold = distance[order][between[:-1].argmax()] if len(evidence) > 1 else distance.min() - 1
    return distance > threshold


def _separation(foreground: Tensor, places: PatchPlaces) -> float:
    """Explained variance of inwardness, between two groups of patches."""
    if places.inwardness is None:
        return float("nan")
    total = float(places.inwardness.double().var(correction=0))
    area = float(foreground.double().mean())
    if total < 1e-12 or not 0 < area < 1:
        return 0.0
    step = float(places.inwardness[foreground].double().mean() - places.inwardness[~foreground].double().mean())
    return area * (1 - area) * step**2 / total


def _share(member: Tensor, where: Tensor) -> float:
    return float(member[where].float().mean()) if bool(where.any()) else 0.0


def _spread(member: Tensor, places: PatchPlaces) -> float:
    """Mean squared distance of the members from their own centre in their image, without images that show fewer than
    two of them."""
    if not bool(member.any()):
        return 0.0
    _, image = places.image[member].unique(return_inverse=True)
    points = torch.stack([places.rows[member], places.cols[member]], dim=1).double()  # (P', 2)
    count = torch.bincount(image).double()[:, None]
    centre = torch.zeros(len(count), 2, dtype=torch.float64).index_add_(0, image, points) / count
    square = (points - centre[image]).square().sum(dim=1)
    several = count[image, 0] >= 2
    # the mean of n points lies too near to them: n / (n - 1) makes small and large groups comparable
    unbiased = square[several] * (count[image, 0] / (count[image, 0] - 1).clamp_min(1))[several]
    return float(unbiased.mean()) if bool(several.any()) else 0.0


def _plausible(area: float) -> float:
    low, high = PLAUSIBLE_AREA
    if area < low:
        return area / low
    return max((1 - area) / (1 - high), 0.0) if area > high else 1.0


def confidence_in_words(confidence: float) -> str:
    """The confidence of a choice, and what to do about it."""
    text = f"foreground confidence {confidence:.2f} of 1"
    if confidence >= GOOD_CONFIDENCE:
        return f"{text}: good"
    if confidence >= POOR_CONFIDENCE:
        return f"{text}: fair, look at masks.png"
    return f"{text}: poor, try other parts.features or give masks"
