"""Scores of whole images: how like the real ones they are as a set, and whether they are copies."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.images import read_image
from partcraft_lit.core.types import ImageSource
from partcraft_lit.data.concept_prompts import plain_text
from partcraft_lit.evaluation.truth import true_hybrids
from partcraft_lit.metrics.clip import ClipEncoder, ClipScore, ClipTextSimilarity
from partcraft_lit.metrics.composition import Targets
from partcraft_lit.metrics.features import ImageFeatures, PixelFeatures, unit_float64
from partcraft_lit.metrics.fid import FrechetDistance
from partcraft_lit.metrics.kid import KernelDistance
from partcraft_lit.metrics.memorisation import Memorisation

_AT_ONCE = 64


@dataclass(frozen=True)
class ImageScores:
    """What one protocol gave.

    Attributes:
        metrics: of all images together.
        rows: scores of each image by itself.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, float]] = field(default_factory=list)

    def add(self, key: str, values: Tensor) -> None:
        """(I,) one value per image, and their mean."""
        self.metrics[key] = float(values.mean())
        for row, value in zip(self.rows, values.tolist(), strict=True):
            row[key] = value


class ImageScorer:
    """Describes generated images, and the real ones that they stand beside, by each of some networks.

    Args:
        source: the real images.
        features: the networks; the keys name them.
        neighbours: real images among which copies are looked for, at most; spread evenly over the source.
        metadata: what discovery wrote, for the truth where it is known.
    """

    def __init__(
        self, source: ImageSource, features: Sequence[ImageFeatures], neighbours: int, metadata: Mapping[str, Any]
    ) -> None:
        self._source, self._features, self._metadata = source, features, metadata
        count = min(neighbours, len(source))
        self._neighbours = torch.linspace(0, len(source) - 1, count).round().long().tolist() if count else []
        self._known: dict[str, dict[int, Tensor]] = {network.id: {} for network in features}

    def score(self, targets: Targets, paths: Sequence[Path], prompts: Sequence[str]) -> ImageScores:
        """Scores of one protocol.

        The images are compared, as a set, with the true hybrids where they are known, else with the images that the
        backgrounds were taken from: as many real images as generated ones.

        Args:
            targets: what was asked for.
            paths: one image per target.
            prompts: one per target, in the prompt grammar.

        Returns:
            Per network, but for plain pixels, ``fid@<id>``, ``kid@<id>`` and ``kid_error@<id>``; ``copied@<id>`` and
            ``nearest@<id>``, the median distance to the nearest real image over that among real ones; and
            ``likeness@<id>``, the mean cosine of an image and the image that it reconstructs, where all of its parts
            come from one. A network that reads texts too gives ``clip-t@<id>`` and ``clip-score@<id>`` of the prompt,
            in which the object's noun stands for its tokens. What would need more images is left out.
        """
        givers = targets.sources[:, 0].tolist()
        scores = ImageScores(rows=[{} for _ in paths])
        texts = [self._text(prompt) for prompt in prompts]
        for network in self._features:
            generated = _describe(network, (read_image(path) for path in paths))
            if not isinstance(network, PixelFeatures):  # as a cloud of points, pixels say nothing, and cost much
                scores.metrics.update(_distances(network, self._references(network, targets), generated))
            if _whole(targets):
                scores.add(f"likeness@{network.id}", _cosines(generated, self._real(network, givers)))
            if len(self._neighbours) > 1:
                scores.metrics.update(_copies(network, self._real(network, self._neighbours), generated))
            if isinstance(network, ClipEncoder):
                for metric in (ClipTextSimilarity(network), ClipScore(network)):
                    scores.add(metric.key, metric.scores(generated, texts))
        return scores

    def ceiling(self, targets: Targets, change: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """The same distances for the images that stand for perfect ones, each changed as no model can avoid.

        Args:
            targets: what was asked for.
            change: (3, height, width) uint8 -> the same; the autoencoder's round trip.
        """
        givers = targets.sources[:, 0].tolist()
        true = true_hybrids(self._source, targets, self._metadata)
        perfect = [self._source.image(index) for index in givers] if true is None else list(true)
        changed = [change(image) for image in perfect]
        metrics: dict[str, float] = {}
        for network in self._features:
            vectors = _describe(network, changed)
            if not isinstance(network, PixelFeatures):
                metrics |= _distances(network, _describe(network, perfect), vectors)
            if _whole(targets):
                metrics[f"likeness@{network.id}"] = float(_cosines(vectors, _describe(network, perfect)).mean())
        return metrics

    def _references(self, network: ImageFeatures, targets: Targets) -> Tensor:
        """(I, D) of what the images are compared with as a set."""
        true = true_hybrids(self._source, targets, self._metadata)
        return self._real(network, targets.sources[:, 0].tolist()) if true is None else _describe(network, true)

    def _text(self, prompt: str) -> str:
        """What CLIP reads: it knows no tokens, so the object's noun stands for them."""
        text, noun = plain_text(prompt), self._source.class_noun or "object"
        return text if re.search(rf"(?<!\w){re.escape(noun)}(?!\w)", text, re.IGNORECASE) else f"{text} {noun}"

    def _real(self, network: ImageFeatures, indices: Sequence[int]) -> Tensor:
        """(len(indices), D), each image described once."""
        known = self._known[network.id]
        missing = sorted(set(indices) - known.keys())
        vectors = _describe(network, (self._source.image(index) for index in missing))
        known.update(zip(missing, vectors, strict=True))
        return torch.stack([known[index] for index in indices])


def _whole(targets: Targets) -> bool:
    """Whether all parts of each image come from one image."""
    return bool((targets.sources == targets.sources[:, :1]).all())


def _cosines(a: Tensor, b: Tensor) -> Tensor:
    """(I, D), (I, D) -> (I,) float64."""
    return (unit_float64(a) * unit_float64(b)).sum(dim=1)


def _describe(network: ImageFeatures, images: Iterable[Tensor]) -> Tensor:
    """Vectors of images of any sizes on the CPU, those of one size together."""
    vectors: list[Tensor] = []
    waiting: list[Tensor] = []

    def flush() -> None:
        if waiting:
            vectors.append(network(torch.stack(waiting)).cpu())
            waiting.clear()

    for image in images:
        if waiting and (waiting[0].shape != image.shape or len(waiting) == _AT_ONCE):
            flush()
        waiting.append(image)
    flush()
    return torch.cat(vectors) if vectors else torch.zeros(0, network.dim)


def _distances(network: ImageFeatures, real: Tensor, generated: Tensor) -> dict[str, float]:
    metrics: dict[str, float] = {}
    # Every process reads all images: nothing is to be gathered.
    fid, kid = FrechetDistance(network, sync_on_compute=False), KernelDistance(network, sync_on_compute=False)
    for vectors, is_real in ((real, True), (generated, False)):
        fid.update(vectors, is_real)
        kid.update(vectors, is_real)
    if len(generated) > 1:
        metrics[fid.key] = float(fid.compute())
    if len(generated) > 2:
        estimate = kid.compute()
        metrics |= {kid.key: float(estimate["value"]), f"kid_error@{network.id}": float(estimate["standard_error"])}
    return metrics


def _copies(network: ImageFeatures, real: Tensor, generated: Tensor) -> dict[str, float]:
    metric = Memorisation(network, cosine=not isinstance(network, PixelFeatures), sync_on_compute=False)
    metric.update(real, real=True)
    metric.update(generated, real=False)
    copies = metric.compute()
    return {
        metric.key: float(copies["value"]),
        f"nearest@{network.id}": float(copies["distance"] / copies["real_distance"]),
    }
