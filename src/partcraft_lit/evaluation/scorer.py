"""Draws the images of a protocol and reads them back; ``make_scorer`` chooses what a run is scored by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import read_image
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.randomness import image_seed, torch_generator
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import BACKGROUND, ImageSource, PartPrediction
from partcraft_lit.evaluation.concepts import ConceptScorer
from partcraft_lit.evaluation.image_scores import Row
from partcraft_lit.evaluation.judging import JudgeScorer
from partcraft_lit.evaluation.sampling import Draw, draw_missing
from partcraft_lit.evaluation.scores import HELD_OUT, ProtocolScores
from partcraft_lit.evaluation.settings import EvalSettings
from partcraft_lit.evaluation.transfer import TransferScorer
from partcraft_lit.evaluation.truth import HasHeldOut, Truth, truth_of
from partcraft_lit.evaluation.whole_images import ImageScorer
from partcraft_lit.judges.judge import PartJudge
from partcraft_lit.metrics.composition import (
    PartScores,
    Targets,
    composition_targets,
    most_species,
    reconstruction_targets,
)
from partcraft_lit.metrics.cosim import CosineSimilarity
from partcraft_lit.metrics.emr import ExactMatchingRate
from partcraft_lit.metrics.features import ImageFeatures
from partcraft_lit.metrics.parts import PartMetric
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.predictor import KMeansPartPredictor

#: Images in memory at once while scores are computed.
_READ_AT_ONCE = 16


@dataclass(frozen=True)
class HeldOut:
    """Images of the same classes that were not trained on.

    Attributes:
        targets: the codes that the predictor reads off them; ``sources`` are their places in these images.
        truth, pictures: as of a :class:`Scorer`, for these images.
    """

    targets: Targets
    truth: Truth | None
    pictures: ImageScorer | None


@dataclass(frozen=True)
class Scorer:
    """Draws images for targets and reads them back.

    Attributes:
        settings: how many of what.
        predictor: reads parts off images.
        codes: (N, M + 1) codes of the real images.
        labels: (N,) classes of the real images, or None.
        folder: where images are kept, each with its recipe.
        truth: reads the images against the truth, where it is known.
        pictures: scores whole images, where it is wanted.
        concepts: asks for each concept by itself, where the data set has concepts.
        transfers: asks for parts beyond their category, where that is wanted and the truth can be drawn.
        judges: compare each part with its source, where it is wanted.
        store: where images are kept that another start would draw again; None keeps none.
        draw_images: makes sure that images stand.
        held_out: images that were not trained on, where they are wanted.
    """

    settings: EvalSettings
    predictor: KMeansPartPredictor
    codes: Tensor
    labels: Tensor | None
    folder: Path
    truth: Truth | None = None
    pictures: ImageScorer | None = None
    concepts: ConceptScorer | None = None
    transfers: TransferScorer | None = None
    judges: JudgeScorer | None = None
    store: Store | None = None
    draw_images: Draw = draw_missing
    held_out: HeldOut | None = None

    @property
    def species(self) -> tuple[int, ...]:
        """Those of ``settings.species`` that the images and their parts allow."""
        most = most_species(self.codes, self.labels, self.predictor.retired)
        return tuple(species for species in self.settings.species if species <= most)

    def log_left_out(self, stages: Stages) -> None:
        """Names what is asked for and cannot be composed."""
        left_out = [str(species) for species in self.settings.species if species not in self.species]
        if left_out and self.settings.compositions:
            classes = "" if self.labels is None else f", {len(self.labels.unique())} classes"
            stages.log(
                f"  eval.species: {', '.join(left_out)} left out; {len(self.codes)} images{classes} and "
                f"{self.codes.shape[1] - len(self.predictor.retired)} parts (the background is one) give hybrids of "
                f"{most_species(self.codes, self.labels, self.predictor.retired)} at most"
            )

    def protocols(self) -> dict[str, Targets]:
        """What is asked for and can be composed, by protocol."""
        chosen = self.settings
        targets: dict[str, Targets] = {}
        if chosen.reconstructions:
            targets["reconstruction"] = reconstruction_targets(self.codes, chosen.reconstructions, chosen.seed)
        if self.held_out is not None:
            targets[HELD_OUT] = self.held_out.targets
        for species in self.species if chosen.compositions else ():
            targets[f"{species} species"] = composition_targets(
                self.codes,
                species,
                chosen.compositions,
                chosen.seed,
                labels=self.labels,
                retired=self.predictor.retired,
            )
        return targets

    def of(self, protocol: str) -> Scorer:
        """The scorer whose real images are those of a protocol; no judge knows where held-out ones have their parts."""
        if protocol != HELD_OUT or self.held_out is None:
            return self
        return replace(self, truth=self.held_out.truth, pictures=self.held_out.pictures, judges=None)

    def score(
        self,
        module: PersonalizationModule,
        targets: Targets,
        protocol: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> ProtocolScores:
        """Draws the images of one protocol, as far as they are missing, and scores them."""
        paths, prompts = self.draw(module, targets, protocol, progress)
        return self.read(targets, protocol, paths, prompts)

    def draw(
        self,
        module: PersonalizationModule,
        targets: Targets,
        protocol: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[list[Path], list[str]]:
        """The images of one protocol, drawn as far as they are missing, and their prompts."""
        prompts = [module.method.plain_caption(row) for row in targets.codes]
        folder = self.image_folder(protocol)
        return self.draw_images(module, prompts, targets.seeds, folder, protocol, progress, self.store), prompts

    def image_folder(self, protocol: str) -> Path:
        return self.folder / protocol.replace(" ", "_")

    def read(self, targets: Targets, protocol: str, paths: Sequence[Path], prompts: Sequence[str]) -> ProtocolScores:
        """Scores images that stand.

        Raises:
            UserError: if one cannot be read.
        """
        names = self.predictor.dictionary.names
        metrics = {"emr": ExactMatchingRate(self.predictor, names), "cosim": CosineSimilarity(self.predictor, names)}
        tally = self.truth.tally() if self.truth else None
        asked = self.truth.requested(targets) if self.truth else None
        rows: list[Row] = []
        label_maps: list[Tensor] = []
        for start in range(0, len(targets), _READ_AT_ONCE):
            batch = targets[start : start + _READ_AT_ONCE]
            images = [read_image(path) for path in paths[start : start + _READ_AT_ONCE]]
            predicted = self.predictor.predict(images)
            label_maps += predicted.label_maps
            scores_of = [_per_part(metrics, predicted, batch.codes, names, row) for row in range(len(batch))]
            for metric in metrics.values():
                metric.update(predicted, batch.codes)
            if tally is not None and asked is not None:
                truths = tally.update(torch.stack(images), asked[start : start + _READ_AT_ONCE])
                scores_of = [{**of_parts, **of_truth} for of_parts, of_truth in zip(scores_of, truths, strict=True)]
            for row, scored in enumerate(scores_of):
                index = start + row
                metadata = {
                    "protocol": protocol,
                    "index": index,
                    "seed": batch.seeds[row],
                    "prompt": prompts[index],
                    "image": str(paths[index].relative_to(self.folder)),
                    "asked": _text(batch.codes[row]),
                    "found": _text(predicted.codes[row]),
                }
                rows.append({**metadata, **scored})
        emr, cosim = ({key: float(v) for key, v in metric.compute().items()} for metric in metrics.values())
        scores = PartScores(emr=emr, cosim=cosim, num_images=len(targets))
        return ProtocolScores(scores, {} if tally is None else tally.compute(), rows, label_maps)


def _per_part(
    metrics: Mapping[str, PartMetric], predicted: PartPrediction, asked: Tensor, names: Sequence[str], row: int
) -> dict[str, float]:
    """Scores of one image: over all parts, without the background, and per part."""
    one = PartPrediction(
        predicted.codes[row : row + 1], predicted.label_maps[row : row + 1], predicted.part_features[row : row + 1]
    )
    scores: dict[str, float] = {}
    for key, metric in metrics.items():
        of_parts = metric.image_scores(one, asked[row : row + 1])[0, metric.live]  # (M + 1,) without retired ones
        scores[f"{key}/all"] = float(of_parts.mean())
        scores[f"{key}/without_background"] = float(of_parts[BACKGROUND + 1 :].mean())
        scores.update({f"{key}/{names[part]}": float(value) for part, value in zip(metric.live, of_parts, strict=True)})
    return scores


def _text(codes: Tensor) -> str:
    return " ".join(str(int(code)) for code in codes)


def make_scorer(
    settings: EvalSettings,
    folder: Path,
    *,
    source: ImageSource,
    predictor: KMeansPartPredictor,
    codes: Tensor,
    label_maps: Sequence[Tensor],
    metadata: Mapping[str, Any],
    store: Store,
    networks: Sequence[ImageFeatures] = (),
    judges: Mapping[str, PartJudge] | None = None,
) -> Scorer:
    """The scorer for a run's images, with everything that the settings ask for and the data set allows.

    Args:
        settings: how many of what.
        folder: where images are kept.
        source: the images that were trained on.
        predictor: reads parts off images.
        codes: (N, M + 1) codes of the real images.
        label_maps: their parts, one map per image.
        metadata: discovery's report.
        store: where judges keep what they compute of real images.
        networks: score whole images; without any these are not scored.
        judges: name -> judge of parts.

    Raises:
        UserError: if held-out images are wanted and the data set has none.
    """
    labels, names = labels_of(source), predictor.dictionary.names
    match = metadata.get("quality", {}).get("match", {})
    return Scorer(
        settings,
        predictor,
        codes,
        labels,
        folder,
        truth=truth_of(source, metadata),
        pictures=ImageScorer(source, networks, settings.neighbours, metadata) if networks else None,
        concepts=ConceptScorer.of(source, names, networks, settings.concepts, settings.seed),
        transfers=TransferScorer.of(
            source, metadata, predictor, codes, labels, networks, settings.transfers, settings.seed
        ),
        judges=JudgeScorer(
            judges,
            source,
            label_maps,
            codes,
            predictor.dictionary,
            settings.judge_pairs,
            settings.seed,
            match,
            store,
        )
        if judges
        else None,
        held_out=held_out_images(settings, source, predictor, networks, metadata),
    )


def held_out_images(
    settings: EvalSettings,
    source: ImageSource,
    predictor: KMeansPartPredictor,
    features: Sequence[ImageFeatures],
    metadata: Mapping[str, Any],
) -> HeldOut | None:
    """Images that were not trained on, with the codes that the predictor reads off them; None where none are wanted.

    Raises:
        UserError: if they are wanted and the data set has none.
    """
    if not settings.held_out:
        return None
    if not isinstance(source, HasHeldOut):
        raise UserError(
            f"eval.held_out={settings.held_out}: this data set knows no images of its classes beside those it trains "
            "on. Set eval.held_out=0; drawn data sets have them (dataset=creatures)."
        )
    others = source.held_out(settings.held_out)
    order = torch.randperm(len(others), generator=torch_generator(settings.seed, "held-out"))
    chosen = order[: settings.held_out].sort().values
    codes = [predictor.predict([others.image(int(i)) for i in some]).codes for some in chosen.split(_READ_AT_ONCE)]
    targets = Targets(
        codes=torch.cat(codes).cpu().long(),
        sources=chosen[:, None].expand(-1, codes[0].shape[1]).clone(),
        seeds=tuple(image_seed(settings.seed, "held-out picture", int(image)) for image in chosen),
    )
    pictures = ImageScorer(others, features, 0, metadata) if features else None
    return HeldOut(targets, truth_of(others, metadata), pictures)


def labels_of(source: ImageSource) -> Tensor | None:
    """(N,) classes, or None unless every image has one and there are several."""
    labels = [source.label(index) for index in range(len(source))]
    if any(label is None for label in labels) or len(set(labels)) < 2:
        return None
    return torch.tensor([int(label) for label in labels if label is not None])
