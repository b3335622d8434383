"""Targets of the two protocols, reconstruction and composition, and the upper bound of their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import resize, resize_short_side, to_uint8, to_unit
from partcraft_lit.core.randomness import image_seed, torch_generator
from partcraft_lit.core.types import ABSENT, Backbone, ImageSource, PartPredictor
from partcraft_lit.metrics.cosim import CosineSimilarity
from partcraft_lit.metrics.emr import ExactMatchingRate


@dataclass(frozen=True)
class Targets:
    """What to generate.

    Attributes:
        codes: (I, M + 1) target codes, ``ABSENT`` for parts that the prompt leaves out.
        sources: (I, M + 1) index of the image that each entry was copied from.
        seeds: one seed per image, equal for all methods and settings, so that comparisons are paired.
    """

    codes: Tensor
    sources: Tensor
    seeds: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, index: slice) -> Self:
        return replace(self, codes=self.codes[index], sources=self.sources[index], seeds=self.seeds[index])


@dataclass(frozen=True)
class PartScores:
    """EMR and CoSim of one set of images, with the keys of :meth:`PartMetric.compute`."""

    emr: dict[str, float]
    cosim: dict[str, float]
    num_images: int

    def flat(self, protocol: str, prefix: str = "eval") -> dict[str, float]:
        """``eval/emr@<protocol>``, ``eval/emr_without_background@<protocol>``, ...: keys for logs."""
        values = {}
        for metric, scores in (("emr", self.emr), ("cosim", self.cosim)):
            for key, value in scores.items():
                name = metric if key == "all" else f"{metric}_{key}"
                values[f"{prefix}/{name}@{protocol}"] = value
        return values


def composition_targets(
    codes: Tensor,
    species: int,
    iterations: int = 500,
    seed: int = 0,
    labels: Tensor | None = None,
    present_only: bool = False,
    retired: Sequence[int] = (),
) -> Targets:
    """Hybrids of ``species`` images each.

    The codes of a first image are taken; then each further image replaces one entry, drawn uniformly from those not yet
    replaced (the background among them). Hybrid ``i`` depends on (seed, i) alone, and its version with one species more
    extends its version with fewer: the curve over species is paired.

    Args:
        codes: (N, M + 1) codes of the real images.
        species: images per hybrid, 1...M + 2; 1 is reconstruction of a random image.
        iterations: number of hybrids.
        seed: base seed.
        labels: (N,) classes; if given, the images of a hybrid are of different classes.
        present_only: draw only among entries that the donor image shows, so that every donor gives something. As
            published, an entry may be copied although it is absent.
        retired: parts that corrections took away; no entry of theirs is drawn.

    Raises:
        UserError: if there are too few images, classes or parts for that many species.

    Source: PartCraft (arXiv 2407.04604), supplementary, algorithm 1.
    """
    _check_species(codes, species, labels, retired)
    hybrids = [_compose(codes, species, seed, i, labels, present_only, retired) for i in range(iterations)]
    empty = torch.empty(0, codes.shape[1], dtype=torch.long)
    return Targets(
        codes=torch.stack([hybrid[0] for hybrid in hybrids]) if hybrids else empty,
        sources=torch.stack([hybrid[1] for hybrid in hybrids]) if hybrids else empty,
        seeds=tuple(image_seed(seed, "composition picture", i) for i in range(iterations)),
    )


def reconstruction_targets(codes: Tensor, limit: int | None = None, seed: int = 0) -> Targets:
    """One target per real image: its own codes.

    Args:
        codes: (N, M + 1) codes of the real images.
        limit: at most so many, drawn at random but kept in order; a smaller limit draws a subset of a larger one's.
        seed: base seed.

    Source: PartCraft (arXiv 2407.04604), supplementary, algorithm 2.
    """
    order = torch.randperm(len(codes), generator=torch_generator(seed, "reconstruction"))
    chosen = order[:limit].sort().values
    return Targets(
        codes=codes[chosen].long(),
        sources=chosen[:, None].expand(-1, codes.shape[1]).clone(),
        seeds=tuple(image_seed(seed, "reconstruction picture", int(image)) for image in chosen),
    )


@torch.no_grad()
def ceiling(
    source: ImageSource,
    predictor: PartPredictor,
    backbone: Backbone,
    indices: Sequence[int],
    part_names: Sequence[str] | None = None,
    batch_size: int = 16,
) -> dict[str, PartScores]:
    """Upper bound of the scores: how well real images match themselves after a slight change.

    Every real image is read whole, changed slightly, and read again. What is lost is the predictor's noise and, for the
    round trip, the autoencoder's.

    Args:
        source: real images.
        predictor: the same that scores generated images.
        backbone: whose autoencoder the images go through, at its resolution.
        indices: which images.
        part_names: as in :class:`PartMetric`.
        batch_size: images read at a time.

    Returns:
        Scores for "vae_round_trip" (encoded and decoded at the backbone's resolution), "mirrored" and "recropped" (the
        central 90 % of each side).
    """
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "vae_round_trip": lambda image: vae_round_trip(image, backbone),
        "mirrored": lambda image: image.flip(-1),
        "recropped": recrop,
    }
    scorers = {name: _Scorer(predictor, part_names) for name in changes}
    for start in range(0, len(indices), batch_size):
        images = [source.image(index) for index in indices[start : start + batch_size]]
        codes = predictor.predict(images).codes
        for name, change in changes.items():
            scorers[name].add([change(image) for image in images], codes)
    return {name: scorer.scores() for name, scorer in scorers.items()}


@torch.no_grad()
def vae_round_trip(image: Tensor, backbone: Backbone) -> Tensor:
    """The image as the backbone's autoencoder gives it back, short side at the backbone's resolution, aspect kept.

    Args:
        image: (3, height, width) uint8.
        backbone: whose autoencoder is used.
    """
    device = next(backbone.vae.parameters()).device
    fitted = resize_short_side(image, backbone.resolution, multiple=backbone.vae_scale_factor)
    mean, _ = backbone.encode_images(to_unit(fitted)[None].to(device))
    return to_uint8(backbone.decode_latents(mean)[0].float().cpu())


def recrop(image: Tensor, share: float = 0.9) -> Tensor:
    """The middle of an image, enlarged to the size of the whole; ``share`` of each side is kept."""
    height, width = image.shape[1:]
    high, wide = max(round(share * height), 1), max(round(share * width), 1)
    top, left = (height - high) // 2, (width - wide) // 2
    return resize(image[:, top : top + high, left : left + wide], (height, width))


class _Scorer:
    def __init__(self, predictor: PartPredictor, part_names: Sequence[str] | None) -> None:
        self.predictor = predictor
        self.emr = ExactMatchingRate(predictor, part_names)
        self.cosim = CosineSimilarity(predictor, part_names)
        self.count = 0

    def add(self, images: Sequence[Tensor], target_codes: Tensor) -> None:
        prediction = self.predictor.predict(images)
        for metric in (self.emr, self.cosim):
            metric.update(prediction, target_codes)
        self.count += len(images)

    def scores(self) -> PartScores:
        if self.count == 0:
            raise ValueError("There is nothing to score: the list of targets or images is empty.")
        emr, cosim = ({key: float(value) for key, value in m.compute().items()} for m in (self.emr, self.cosim))
        return PartScores(emr=emr, cosim=cosim, num_images=self.count)


def _compose(
    codes: Tensor,
    species: int,
    seed: int,
    iteration: int,
    labels: Tensor | None,
    present_only: bool,
    retired: Sequence[int],
) -> tuple[Tensor, Tensor]:
    generator = torch_generator(seed, "composition", iteration)
    images = _draw_images(len(codes), species, labels, generator)
    drawn = torch.randperm(codes.shape[1], generator=generator).tolist()
    order = [part for part in drawn if part not in retired]  # in which entries are replaced
    hybrid = codes[images[0]].long().clone()
    sources = torch.full_like(hybrid, images[0])
    for donor in images[1:]:
        shown = [part for part in order if not present_only or codes[donor, part] != ABSENT]
        if not shown:
            continue  # the donor shows no part that is still free
        order.remove(shown[0])
        hybrid[shown[0]], sources[shown[0]] = codes[donor, shown[0]], donor
    return hybrid, sources


def _draw_images(count: int, species: int, labels: Tensor | None, generator: torch.Generator) -> list[int]:
    order = torch.randperm(count, generator=generator).tolist()
    if labels is None:
        return order[:species]
    first: dict[int, int] = {}
    for image in order:
        first.setdefault(int(labels[image]), image)
        if len(first) == species:
            break
    return list(first.values())


def most_species(codes: Tensor, labels: Tensor | None = None, retired: Sequence[int] = ()) -> int:
    """Of how many images a hybrid can be at most: one gives it all, each other one an entry; no two of one class.

    Args:
        codes: (N, M + 1).
        labels: (N,) classes, or None.
        retired: parts that corrections took away.
    """
    classes = len(codes) if labels is None else len(labels.unique())
    return min(codes.shape[1] - len(retired) + 1, len(codes), classes)


def _check_species(codes: Tensor, species: int, labels: Tensor | None, retired: Sequence[int]) -> None:
    parts, images = codes.shape[1] - len(retired), len(codes)
    if not 1 <= species <= parts + 1:
        raise UserError(
            f"eval.species={species}: with {parts} parts (the background is one) a hybrid has 1...{parts + 1} species."
        )
    if species > images:
        raise UserError(f"eval.species={species}: a hybrid needs as many images, and there are {images}.")
    if labels is not None and species > len(labels.unique()):
        raise UserError(f"eval.species={species}: there are only {len(labels.unique())} classes to draw from.")
