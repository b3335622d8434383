"""Scores of a run: what was asked for, what came out, and between which bounds that lies."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.images import read_image
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.randomness import image_seed, torch_generator
from partcraft_lit.core.store import Store
from partcraft_lit.core.store.cached import cached_values
from partcraft_lit.core.types import BACKGROUND, Backbone, ImageSource, PartPrediction
from partcraft_lit.evaluation.concepts import ConceptScorer
from partcraft_lit.evaluation.image_scores import (
    EXCESS_ERROR,
    FILE_NAME,
    TRUE_DRAWING,
    Row,
    write_judges,
    write_networks,
    write_rows,
)
from partcraft_lit.evaluation.judging import ALL_IMAGES, PREFIX, REAL_IMAGES, JudgeScorer, unreadable
from partcraft_lit.evaluation.sampling import Draw, draw_missing, recipe_of
from partcraft_lit.evaluation.settings import EvalSettings
from partcraft_lit.evaluation.transfer import TransferScorer
from partcraft_lit.evaluation.truth import HasHeldOut, Truth, truth_of
from partcraft_lit.evaluation.whole_images import ImageScorer
from partcraft_lit.judges.judge import PartJudge
from partcraft_lit.metrics.composition import (
    PartScores,
    Targets,
    ceiling,
    composition_targets,
    most_species,
    reconstruction_targets,
    vae_round_trip,
)
from partcraft_lit.metrics.cosim import CosineSimilarity
from partcraft_lit.metrics.emr import ExactMatchingRate
from partcraft_lit.metrics.features import ImageFeatures
from partcraft_lit.metrics.parts import PartMetric
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.predictor import KMeansPartPredictor

#: Raise by one when equal images would be scored otherwise.
_VERSION = 1
#: Images in memory at once while scores are computed.
_READ_AT_ONCE = 16
#: Images of the same classes that were not trained on.
HELD_OUT = "held-out reconstruction"
#: Before the name of a protocol: the same images as a perfect model would give them.
CEILING = "ceiling "


@dataclass
class Scores:
    """Everything that was scored.

    Attributes:
        protocols: "reconstruction", "2 species", ... -> scores of the trained model.
        untrained: the same for the model before training, for protocols where it was measured.
        ceilings: real images read twice: "vae_round_trip", "mirrored", "recropped".
        truth: scores against the truth, by protocol; empty where it is not known.
        pictures: metrics of whole images of the trained model, by protocol; behind ``CEILING`` those of images
            that a perfect model would draw.
        judges: scores of parts by judges, by protocol; of real images their calibration, of all images their agreement
            with the truth.
        rows: one per image of the trained model.
        codes: name -> effective number of codes, of the parts that have fewer than K.
    """

    protocols: dict[str, PartScores] = field(default_factory=dict)
    untrained: dict[str, PartScores] = field(default_factory=dict)
    ceilings: dict[str, PartScores] = field(default_factory=dict)
    truth: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: dict[str, dict[str, float]] = field(default_factory=dict)
    judges: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """One number per key, for logs and files."""
        scores: dict[str, float] = {}
        for prefix, group in (("eval", self.protocols), ("untrained", self.untrained), ("ceiling", self.ceilings)):
            for protocol, of_parts in group.items():
                scores.update(of_parts.flat(protocol.replace(" ", "_"), prefix))
        groups = (("truth/", self.truth), ("pictures/", self.pictures), (PREFIX, self.judges))
        for kind, group_of in groups:
            for protocol, values in group_of.items():
                scores.update({f"{kind}{key}@{protocol.replace(' ', '_')}": value for key, value in values.items()})
        return scores | {f"codes/{name}": float(number) for name, number in self.codes.items()}


@dataclass(frozen=True)
class ProtocolScores:
    """What one protocol gave.

    Attributes:
        scores: means over images.
        truth: scores against the truth; empty where it is not known.
        rows: one per image, see ``image_scores``.
        label_maps: where the part predictor has seen the parts, one per image.
    """

    scores: PartScores
    truth: dict[str, float]
    rows: list[Row]
    label_maps: list[Tensor]


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


def measure_ceiling(scorer: Scorer, source: ImageSource, backbone: Backbone, store: Store) -> dict[str, PartScores]:
    """Real images, changed a little and read again: no generated image can be expected to score higher.

    Measured once for all runs with these images, parts and backbone.
    """
    most = min(scorer.settings.ceiling_images, len(source))
    if most == 0:
        return {}
    indices = torch.linspace(0, len(source) - 1, most).round().long().tolist()
    dictionary = scorer.predictor.dictionary
    images = [source.content_hash(index) for index in indices]
    about = [_VERSION, images, dictionary.hash, list(dictionary.names), backbone.hash, backbone.resolution]

    def measure() -> dict[str, Any]:
        return scores_as_values(ceiling(source, scorer.predictor, backbone, indices, dictionary.names))

    return scores_of_values(cached_values(store, "ceilings", about, measure))


def image_scorer(
    settings: EvalSettings, source: ImageSource, features: Sequence[ImageFeatures], metadata: Mapping[str, Any]
) -> ImageScorer | None:
    """What scores whole images by these networks; None without any."""
    return ImageScorer(source, features, settings.neighbours, metadata) if features else None


def judge_scorer(
    settings: EvalSettings,
    judges: Mapping[str, PartJudge],
    source: ImageSource,
    label_maps: Sequence[Tensor],
    codes: Tensor,
    dictionary: PartDictionary,
    metadata: Mapping[str, Any],
    store: Store,
) -> JudgeScorer | None:
    """What asks judges about parts; None without any."""
    match = metadata["quality"]["match"] if "quality" in metadata else {}
    pairs, seed = settings.judge_pairs, settings.seed
    if not judges:
        return None
    return JudgeScorer(judges, source, label_maps, codes, dictionary, pairs, seed, match, store)


def concept_scorer(
    settings: EvalSettings, source: ImageSource, features: Sequence[ImageFeatures], names: Sequence[str]
) -> ConceptScorer | None:
    """What asks for concepts by their prompts; None for a data set without any."""
    return ConceptScorer.of(source, names, features, settings.concepts, settings.seed)


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


def transfer_scorer(
    settings: EvalSettings,
    source: ImageSource,
    features: Sequence[ImageFeatures],
    metadata: Mapping[str, Any],
    predictor: KMeansPartPredictor,
    codes: Tensor,
) -> TransferScorer | None:
    """What asks for parts on creatures of another category; None where that is not wanted or nobody knows the truth."""
    return TransferScorer.of(
        source, metadata, predictor, codes, labels_of(source), features, settings.transfers, settings.seed
    )


def write_scores(scores: Scores, folder: Path) -> dict[str, float]:
    """``scores.json`` with one number per key; returns them."""
    flat = scores.flat()
    atomic_write(folder / "scores.json", json.dumps(_finite(flat), indent=1) + "\n")
    return flat


def labels_of(source: ImageSource) -> Tensor | None:
    """(N,) classes, or None unless every image has one and there are several."""
    labels = [source.label(index) for index in range(len(source))]
    if any(label is None for label in labels) or len(set(labels)) < 2:
        return None
    return torch.tensor([int(label) for label in labels if label is not None])


def score_trained(scorer: Scorer, module: PersonalizationModule, scores: Scores, stages: Stages) -> None:
    """All protocols of the trained model, with ``scores.csv``."""
    score_images(scorer, module, scores, stages)
    if is_first_process():
        write_rows(scorer.folder / FILE_NAME, scores.rows)
        write_networks(scorer.folder, scorer.settings.pictures)
        write_judges(scorer.folder, scorer.settings.judge)


def score_images(scorer: Scorer, module: PersonalizationModule, scores: Scores, stages: Stages) -> None:
    """All protocols of the trained model."""
    read: dict[str, ProtocolScores] = {}
    for protocol, targets in scorer.protocols().items():
        own = scorer.of(protocol)
        with stages.stage("score") as counter:
            progress = functools.partial(counter.part, protocol)
            of_protocol = read[protocol] = own.score(module, targets, protocol, progress)
            add_protocol(scores, protocol, of_protocol)
        if own.truth is not None and (perfect := own.truth.perfect(targets)):
            scores.truth[f"perfect {protocol}"] = perfect.means
            scores.truth[protocol]["excess_error"] = _subtract_floor(of_protocol.rows, perfect.rows)
        if own.pictures is not None:
            with stages.stage("score whole pictures"):
                _score_pictures(own, own.pictures, protocol, targets, of_protocol.rows, module.backbone, scores)
    if scorer.judges is not None:
        _score_judges(scorer, scorer.judges, read, scores, stages)
    if scorer.concepts is not None:
        _score_requests(scorer, scorer.concepts, tuple(scorer.concepts.requests), module, scores, stages)
    if scorer.transfers is not None:
        _score_requests(scorer, scorer.transfers, scorer.transfers.protocols, module, scores, stages)


def _subtract_floor(rows: Sequence[Row], true: Sequence[Mapping[str, float]]) -> float:
    """Adds to each image the part accuracy of the true drawing of its request, and by how much the error is higher.

    The judge errs on true drawings too, and a pose hides parts: the error of part accuracy less that of the true
    drawing is what the model could have done better.

    Returns:
        The mean of ``excess_error/all`` over images.
    """
    for row, of_true in zip(rows, true, strict=True):
        for key, value in of_true.items():
            row[f"{TRUE_DRAWING}{key}"] = value
            row[f"{EXCESS_ERROR}{key.partition('/')[2]}"] = value - row[key]
    errors = torch.tensor([row[f"{EXCESS_ERROR}all"] for row in rows], dtype=torch.float64)
    return float(errors.nanmean())


def _score_judges(
    scorer: Scorer, judges: JudgeScorer, read: Mapping[str, ProtocolScores], scores: Scores, stages: Stages
) -> None:
    """What judges say of each part, after what their word is worth on real images.

    All images stand by now: processes that share the drawing do not wait for each other's judges.
    """
    with stages.stage("calibrate judges") as counter:
        calibrations = judges.calibrate(counter.part)
    scores.judges[REAL_IMAGES] = judges.calibration_metrics(calibrations)
    with stages.stage("judge parts") as counter:
        for protocol, targets in scorer.protocols().items():
            if scorer.of(protocol).judges is None:
                continue
            rows, label_maps = read[protocol].rows, read[protocol].label_maps
            paths = [scorer.folder / row["image"] for row in rows]
            progress = functools.partial(_in_protocol, counter.part, protocol)
            judged = judges.score(calibrations, targets, paths, label_maps, progress)
            scores.judges[protocol] = judged.metrics
            for row, more in zip(rows, judged.rows, strict=True):
                row.update(more)
    if agreement := judges.agreement(scores.rows):
        scores.judges[ALL_IMAGES] = agreement


def _in_protocol(report: Callable[[str, int, int], None], protocol: str, judge: str, done: int, total: int) -> None:
    report(f"{protocol}, {judge}", done, total)


def _score_pictures(
    scorer: Scorer,
    pictures: ImageScorer,
    protocol: str,
    targets: Targets,
    rows: Sequence[Row],
    backbone: Backbone,
    scores: Scores,
) -> None:
    """Numbers of whole images, for the set and for each line; and beside them what the autoencoder loses."""
    paths, prompts = [scorer.folder / row["image"] for row in rows], [row["prompt"] for row in rows]
    whole = pictures.score(targets, paths, prompts)
    scores.pictures[protocol] = whole.metrics
    for row, more in zip(rows, whole.rows, strict=True):
        row.update(more)
    if scorer.settings.ceiling_images:
        round_trip = functools.partial(vae_round_trip, backbone=backbone)
        some = targets[: scorer.settings.ceiling_images]
        scores.pictures[CEILING + protocol] = pictures.ceiling(some, round_trip)


def _score_requests(
    scorer: Scorer,
    requests: ConceptScorer | TransferScorer,
    protocols: Sequence[str],
    module: PersonalizationModule,
    scores: Scores,
    stages: Stages,
) -> None:
    """Protocols with prompts of their own."""
    kind = "concepts" if isinstance(requests, ConceptScorer) else "transfers"
    for protocol in protocols:
        with stages.stage(f"score {kind}") as counter:
            progress = functools.partial(counter.part, protocol)
            rows, metrics = requests.score(module, protocol, scorer.folder, progress, scorer.draw_images)
        scores.pictures[protocol] = metrics
        scores.rows += rows


def add_protocol(scores: Scores, protocol: str, of_protocol: ProtocolScores) -> None:
    scores.protocols[protocol] = of_protocol.scores
    scores.rows += of_protocol.rows
    if of_protocol.truth:
        scores.truth[protocol] = of_protocol.truth


def score_untrained(
    scorer: Scorer, module: PersonalizationModule, scores: Scores, store: Store | None, stages: Stages
) -> None:
    """The same protocols before training, on the first few targets of each; with a store once for all equal starts."""
    few = scorer.settings.untrained
    below = replace(scorer, folder=scorer.folder / "untrained", store=store)
    for protocol, targets in scorer.protocols().items() if few else ():
        with stages.stage("score untrained") as counter:
            progress = functools.partial(counter.part, protocol)
            of_parts, truth = _cached_score(below.of(protocol), module, targets[:few], protocol, progress, store)
        scores.untrained[protocol] = of_parts
        if truth:
            scores.truth[f"untrained {protocol}"] = truth


def _cached_score(
    scorer: Scorer,
    module: PersonalizationModule,
    targets: Targets,
    protocol: str,
    progress: Callable[[int, int], None],
    store: Store | None,
) -> tuple[PartScores, dict[str, float]]:
    """Scores of images, and against the truth; read again only if images, parts or the truth are others."""
    paths, prompts = scorer.draw(module, targets, protocol, progress)
    dictionary = scorer.predictor.dictionary
    parts = [dictionary.hash, list(dictionary.names)]
    truth = None if scorer.truth is None else [scorer.truth.hash, scorer.truth.requested(targets).tolist()]
    about = [_VERSION, [recipe_of(path) for path in paths], targets.codes.tolist(), parts, truth]

    def read() -> dict[str, Any]:
        scored = scorer.read(targets, protocol, paths, prompts)
        return {"truth": scored.truth, **scores_as_values({"scores": scored.scores})}

    values = read() if store is None else cached_values(store, "scores", about, read)
    return scores_of_values({"scores": values["scores"]})["scores"], values["truth"]


def log_scores(scores: Scores, stages: Stages) -> None:
    """A line per protocol."""
    for kind, group in (("", scores.protocols), ("untrained ", scores.untrained), ("ceiling ", scores.ceilings)):
        for protocol, values in group.items():
            stages.log(
                f"  {kind}{protocol}: EMR {values.emr['all']:.3f} (without background "
                f"{values.emr['without_background']:.3f}), CoSim {values.cosim['all']:.3f}, n = {values.num_images}"
            )
    for protocol, metrics in scores.truth.items():
        shown = ", ".join(f"{key} {value:.3f}" for key, value in metrics.items())
        stages.log(f"  against the truth, {protocol}: {shown}")
    for protocol, metrics in scores.pictures.items():
        stages.log(f"  whole images, {protocol}: " + ", ".join(f"{key} {v:.4g}" for key, v in metrics.items()))
    _log_judges(scores.judges, stages)


def _log_judges(judges: Mapping[str, Mapping[str, float]], stages: Stages) -> None:
    """What each judge can read, then its calibrated scores."""
    for name, parts in unreadable(judges.get(REAL_IMAGES, {})).items():
        listed = ", ".join(f"{part} (AUC {auc:.2f})" for part, auc in parts.items())
        stages.log(f"  judge {name} cannot tell codes of {listed} apart on real images: its means leave them out")
    for protocol, metrics in judges.items():
        shown = {
            key: value for key, value in metrics.items() if key.split("/")[1] in ("calibrated", "auc", "agreement")
        }
        stages.log(f"  judges, {protocol}: " + ", ".join(f"{key} {value:.3f}" for key, value in shown.items()))


def annotation_scores(metadata: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What discovery's report says of boxes and keypoints, as the "protocol" of the real images; empty without them."""
    annotations = metadata.get("annotations", {})
    metrics = {key: value for key, value in annotations.items() if isinstance(value, float) and value == value}
    return {"real images": metrics} if metrics else {}


def _finite(scores: Mapping[str, float]) -> dict[str, Any]:
    return {key: value if value == value else None for key, value in scores.items()}


def scores_as_values(scores: Mapping[str, PartScores]) -> dict[str, Any]:
    return {name: asdict(of_parts) for name, of_parts in scores.items()}


def scores_of_values(values: Mapping[str, Any]) -> dict[str, PartScores]:
    return {name: PartScores(**of_parts) for name, of_parts in values.items()}
