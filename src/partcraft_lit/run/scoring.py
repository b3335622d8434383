"""Scores of a run: what was asked for, what came out, and between which bounds that lies."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.callbacks.checkpoint import newest_good
from partcraft_lit.environment import is_first_process
from partcraft_lit.errors import UserError
from partcraft_lit.files import atomic_write
from partcraft_lit.images import read_image
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
from partcraft_lit.parts.discovery import read_parts
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.run.assembly import build_module
from partcraft_lit.run.concepts import ConceptScorer
from partcraft_lit.run.drawing import draw_missing, recipe_of
from partcraft_lit.run.image_scores import (
    FILE_NAME,
    Row,
    differences,
    number_differences,
    read_rows,
    stored_numbers,
    write_networks,
    write_rows,
)
from partcraft_lit.run.remembered import remembered_values, scores_as_values, scores_of_values
from partcraft_lit.run.stages import Stages
from partcraft_lit.run.truth import TruthScorer, as_numbers, image_rows
from partcraft_lit.run.whole_pictures import PictureScorer
from partcraft_lit.settings import EvalSettings, TrainSettings
from partcraft_lit.store import Store
from partcraft_lit.types import BACKGROUND, Backbone, ImageSource, PartPrediction, PatchFeatures

#: Raise by one when equal pictures would be scored otherwise.
_VERSION = 1
#: Pictures in memory at once while scores are computed.
_READ_AT_ONCE = 16
#: Before the name of a protocol: the same pictures as a perfect model would give them.
CEILING = "ceiling "


@dataclass
class Scores:
    """Everything that was scored.

    Attributes:
        protocols: "reconstruction", "2 species", ... -> scores of the trained model.
        untrained: the same for the model before training, for protocols where it was measured.
        ceilings: real images read twice: "vae_round_trip", "mirrored", "recropped".
        truth: numbers that need the truth, by protocol; empty where it is not known.
        pictures: numbers about whole pictures of the trained model, by protocol; behind ``CEILING`` those of pictures
            that a perfect model would draw.
        rows: one per picture of the trained model.
    """

    protocols: dict[str, PartScores] = field(default_factory=dict)
    untrained: dict[str, PartScores] = field(default_factory=dict)
    ceilings: dict[str, PartScores] = field(default_factory=dict)
    truth: dict[str, dict[str, float]] = field(default_factory=dict)
    pictures: dict[str, dict[str, float]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)

    def flat(self) -> dict[str, float]:
        """One number per key, for logs and files."""
        numbers: dict[str, float] = {}
        for prefix, group in (("eval", self.protocols), ("untrained", self.untrained), ("ceiling", self.ceilings)):
            for protocol, scores in group.items():
                numbers.update(scores.flat(protocol.replace(" ", "_"), prefix))
        for kind, group_of in (("truth", self.truth), ("pictures", self.pictures)):
            for protocol, values in group_of.items():
                numbers.update({f"{kind}/{key}@{protocol.replace(' ', '_')}": value for key, value in values.items()})
        return numbers


@dataclass(frozen=True)
class ProtocolScores:
    """What one protocol gave.

    Attributes:
        scores: means over pictures.
        truth: numbers that need the truth; empty where it is not known.
        rows: one per picture, see ``image_scores``.
    """

    scores: PartScores
    truth: dict[str, float]
    rows: list[Row]


@dataclass(frozen=True)
class Scorer:
    """Draws pictures for targets and reads them back.

    Attributes:
        settings: how many of what.
        predictor: reads parts off pictures.
        codes: (N, M + 1) codes of the real images.
        labels: (N,) classes of the real images, or None.
        folder: where pictures are kept, each with its recipe.
        truth: reads the pictures against the truth, where it is known.
        pictures: scores whole pictures, where it is wanted.
        concepts: asks for each concept by itself, where the data set has concepts.
        store: where pictures are kept that another start would draw again; None keeps none.
    """

    settings: EvalSettings
    predictor: KMeansPartPredictor
    codes: Tensor
    labels: Tensor | None
    folder: Path
    truth: TruthScorer | None = None
    pictures: PictureScorer | None = None
    concepts: ConceptScorer | None = None
    store: Store | None = None

    @property
    def species(self) -> tuple[int, ...]:
        """Those of ``settings.species`` that the images and their parts allow."""
        most = most_species(self.codes, self.labels)
        return tuple(species for species in self.settings.species if species <= most)

    def say_left_out(self, stages: Stages) -> None:
        """Names what is asked for and cannot be composed."""
        left_out = [str(species) for species in self.settings.species if species not in self.species]
        if left_out and self.settings.compositions:
            classes = "" if self.labels is None else f", {len(self.labels.unique())} classes"
            stages.say(
                f"  eval.species: {', '.join(left_out)} left out; {len(self.codes)} images{classes} and "
                f"{self.codes.shape[1]} parts (the background is one) give hybrids of "
                f"{most_species(self.codes, self.labels)} at most"
            )

    def protocols(self) -> dict[str, Targets]:
        """What is asked for and can be composed, by protocol."""
        chosen = self.settings
        wanted: dict[str, Targets] = {}
        if chosen.reconstructions:
            wanted["reconstruction"] = reconstruction_targets(self.codes, chosen.reconstructions, chosen.seed)
        for species in self.species if chosen.compositions else ():
            wanted[f"{species} species"] = composition_targets(
                self.codes, species, chosen.compositions, chosen.seed, labels=self.labels
            )
        return wanted

    def score(
        self,
        module: PersonalizationModule,
        targets: Targets,
        protocol: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> ProtocolScores:
        """Draws the pictures of one protocol, as far as they are missing, and scores them."""
        paths, prompts = self.draw(module, targets, protocol, progress)
        return self.read(targets, protocol, paths, prompts)

    def draw(
        self,
        module: PersonalizationModule,
        targets: Targets,
        protocol: str,
        progress: Callable[[int, int], None] | None = None,
    ) -> tuple[list[Path], list[str]]:
        """The pictures of one protocol, drawn as far as they are missing, and their prompts."""
        prompts = [module.method.plain_caption(row) for row in targets.codes]
        folder = self.picture_folder(protocol)
        return draw_missing(module, prompts, targets.seeds, folder, protocol, progress, self.store), prompts

    def picture_folder(self, protocol: str) -> Path:
        return self.folder / protocol.replace(" ", "_")

    def read(self, targets: Targets, protocol: str, paths: Sequence[Path], prompts: Sequence[str]) -> ProtocolScores:
        """Scores pictures that stand.

        Raises:
            UserError: if one cannot be read.
        """
        names = self.predictor.dictionary.names
        metrics = {"emr": ExactMatchingRate(self.predictor, names), "cosim": CosineSimilarity(self.predictor, names)}
        accuracy = self.truth.accuracy() if self.truth else None
        species = self.truth.species_of(targets) if self.truth else None
        rows: list[Row] = []
        for start in range(0, len(targets), _READ_AT_ONCE):
            batch = targets[start : start + _READ_AT_ONCE]
            images = [read_image(path) for path in paths[start : start + _READ_AT_ONCE]]
            found = self.predictor.predict(images)
            numbers = [_per_part(metrics, found, batch.codes, names, row) for row in range(len(batch))]
            for metric in metrics.values():
                metric.update(found, batch.codes)
            if accuracy is not None and species is not None:
                truths = image_rows(accuracy, torch.stack(images), species[start : start + _READ_AT_ONCE])
                numbers = [{**of_parts, **of_truth} for of_parts, of_truth in zip(numbers, truths, strict=True)]
            for row, scored in enumerate(numbers):
                index = start + row
                facts = {
                    "protocol": protocol,
                    "index": index,
                    "seed": batch.seeds[row],
                    "prompt": prompts[index],
                    "image": str(paths[index].relative_to(self.folder)),
                    "asked": _text(batch.codes[row]),
                    "found": _text(found.codes[row]),
                }
                rows.append({**facts, **scored})
        emr, cosim = ({key: float(v) for key, v in metric.compute().items()} for metric in metrics.values())
        scores = PartScores(emr=emr, cosim=cosim, num_images=len(targets))
        return ProtocolScores(scores, {} if accuracy is None else as_numbers(accuracy), rows)


def _per_part(
    metrics: Mapping[str, PartMetric], found: PartPrediction, asked: Tensor, names: Sequence[str], row: int
) -> dict[str, float]:
    """Scores of one picture: over all parts, without the background, and per part."""
    one = PartPrediction(
        found.codes[row : row + 1], found.label_maps[row : row + 1], found.part_features[row : row + 1]
    )
    numbers: dict[str, float] = {}
    for key, metric in metrics.items():
        scores = metric.image_scores(one, asked[row : row + 1])[0]  # (M + 1,)
        numbers[f"{key}/all"] = float(scores.mean())
        numbers[f"{key}/without_background"] = float(scores[BACKGROUND + 1 :].mean())
        numbers.update({f"{key}/{name}": float(value) for name, value in zip(names, scores, strict=True)})
    return numbers


def _text(codes: Tensor) -> str:
    return " ".join(str(int(code)) for code in codes)


def measure_ceiling(scorer: Scorer, source: ImageSource, backbone: Backbone, store: Store) -> dict[str, PartScores]:
    """Real images, changed a little and read again: no generated picture can be expected to score higher.

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

    return scores_of_values(remembered_values(store, "ceilings", about, measure))


def picture_scorer(
    settings: EvalSettings, source: ImageSource, features: Sequence[ImageFeatures], facts: Mapping[str, Any]
) -> PictureScorer | None:
    """What scores whole pictures by these networks; None without any."""
    return PictureScorer(source, features, settings.neighbours, facts) if features else None


def concept_scorer(
    settings: EvalSettings, source: ImageSource, features: Sequence[ImageFeatures], names: Sequence[str]
) -> ConceptScorer | None:
    """What asks for concepts by their prompts; None for a data set without any."""
    return ConceptScorer.of(source, names, features, settings.concepts, settings.seed)


def write_scores(scores: Scores, folder: Path) -> dict[str, float]:
    """``scores.json`` with one number per key; returns the numbers."""
    numbers = scores.flat()
    atomic_write(folder / "scores.json", json.dumps(_finite(numbers), indent=1) + "\n")
    return numbers


def labels_of(source: ImageSource) -> Tensor | None:
    """(N,) classes, or None unless every image has one and there are several."""
    labels = [source.label(index) for index in range(len(source))]
    if any(label is None for label in labels) or len(set(labels)) < 2:
        return None
    return torch.tensor([int(label) for label in labels if label is not None])


def load_trained(
    settings: TrainSettings, run_folder: Path, backbone: Backbone, class_noun: str
) -> tuple[PersonalizationModule, PartDictionary]:
    """The module of a run with the weights of its newest good checkpoint, and its dictionary.

    Raises:
        UserError: if the run has no checkpoint that can be read, or no dictionary.
    """
    checkpoint = newest_good(run_folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"The run {run_folder} has no checkpoint that can be read; train it first (or further).")
    dictionary = PartDictionary.load(run_folder / "parts")
    module = build_module(settings, dictionary, backbone, class_noun)
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    device = next(backbone.unet.parameters()).device
    return module.to(device).eval(), dictionary


def evaluate(
    settings: TrainSettings,
    folder: Path,
    *,
    run_folder: Path,
    source: ImageSource,
    load_backbone: Callable[[], Backbone],
    load_features: Callable[[], PatchFeatures],
    load_picture_features: Callable[[], Sequence[ImageFeatures]],
) -> dict[str, float]:
    """``partcraft evaluate``: scores a finished run again, with other numbers of pictures if wanted.

    Returns:
        One number per key, as in ``scores.json``.
    """
    stages = Stages()
    networks = load_picture_features()  # before anything is drawn: one that is missing is told at once
    backbone = load_backbone()
    module, dictionary = load_trained(settings, run_folder, backbone, source.class_noun)
    scorer = scorer_of_run(settings, folder, run_folder, source, load_features(), dictionary, stages)
    facts = json.loads((run_folder / "parts" / "discovery.json").read_text())
    scorer = replace(
        scorer,
        pictures=picture_scorer(settings.eval, source, networks, facts),
        concepts=concept_scorer(settings.eval, source, networks, dictionary.names),
    )
    scores = Scores(truth=annotation_numbers(facts))
    with stages.stage("measure ceilings"):
        scores.ceilings = measure_ceiling(scorer, source, backbone, Store(settings.paths.store))
    scorer.say_left_out(stages)
    score_trained(scorer, module, scores, stages)
    if not is_first_process():
        return scores.flat()
    numbers = write_scores(scores, folder)
    say_scores(scores, stages)
    stages.say(f"Scores: {folder / 'scores.json'}, of each picture: {folder / FILE_NAME}")
    return numbers


def verify(
    settings: TrainSettings,
    folder: Path,
    *,
    run_folder: Path,
    source: ImageSource,
    load_features: Callable[[], PatchFeatures],
    load_picture_features: Callable[[], Sequence[ImageFeatures]],
) -> int:
    """``partcraft evaluate verify=true``: computes every number again from the stored pictures.

    That is each line of ``scores.csv``, and of ``scores.json`` the means over them and what was said of whole pictures.

    Returns:
        Number of pictures that were read.

    Raises:
        UserError: if a picture is missing, or a number is another one; it names them.
    """
    stages = Stages()
    stored = read_rows(folder / FILE_NAME)
    gone = [row["image"] for row in stored if not (folder / row["image"]).is_file()]
    if gone:
        raise UserError(
            f"{len(gone)} pictures of {folder} are gone, for instance {gone[0]}. partcraft evaluate "
            f"run={run_folder} draws them again."
        )
    dictionary = PartDictionary.load(run_folder / "parts")
    scorer = scorer_of_run(settings, folder, run_folder, source, load_features(), dictionary, stages)
    networks = load_picture_features()
    facts = json.loads((run_folder / "parts" / "discovery.json").read_text())
    pictures = picture_scorer(settings.eval, source, networks, facts)
    again = Scores()
    with stages.stage("verify"):
        for protocol, targets in scorer.protocols().items():
            of_protocol = [row for row in stored if row["protocol"] == protocol][: len(targets)]
            some = targets[: len(of_protocol)]
            paths, prompts = [folder / row["image"] for row in of_protocol], [row["prompt"] for row in of_protocol]
            of_parts = scorer.read(some, protocol, paths, prompts)
            _add(again, protocol, of_parts)
            if pictures is not None:
                whole = pictures.score(some, paths, prompts)
                again.pictures[protocol] = whole.numbers
                for row, more in zip(of_parts.rows, whole.rows, strict=True):
                    row.update({key: value for key, value in more.items() if key in stored[0]})
        concepts = concept_scorer(settings.eval, source, networks, dictionary.names)
        if concepts is not None:
            _read_concepts(concepts, folder, stored, again)
    found = differences(stored, again.rows)
    if found:
        raise UserError(_differences_in_words(found, folder / FILE_NAME))
    if found := number_differences(stored_numbers(run_folder, folder), again.flat()):
        raise UserError(_differences_in_words(found, folder / "scores.json"))
    stages.say(
        f"{len(again.rows)} pictures read again: every number of {folder / FILE_NAME} and their means are the same."
    )
    return len(again.rows)


def _differences_in_words(found: Sequence[str], path: Path, most: int = 10) -> str:
    more = f"\n  and {len(found) - most} more" if len(found) > most else ""
    return f"{len(found)} numbers of {path} differ:\n  " + "\n  ".join(found[:most]) + more


def scorer_of_run(
    settings: TrainSettings,
    folder: Path,
    run_folder: Path,
    source: ImageSource,
    features: PatchFeatures,
    dictionary: PartDictionary,
    stages: Stages,
) -> Scorer:
    """The scorer of a run that has ended, from its dictionary and the store."""
    predictor = KMeansPartPredictor(dictionary, features)
    with stages.stage("read parts") as counter:
        store = Store(settings.paths.store)
        _, codes, _ = read_parts(source, features, dictionary, store=store, progress=counter.part)
    facts = json.loads((run_folder / "parts" / "discovery.json").read_text())
    return Scorer(settings.eval, predictor, codes, labels_of(source), folder, TruthScorer.of(source, facts))


def score_trained(scorer: Scorer, module: PersonalizationModule, scores: Scores, stages: Stages) -> None:
    """All protocols of the trained model, with ``scores.csv``."""
    for protocol, targets in scorer.protocols().items():
        with stages.stage("score") as counter:
            progress = functools.partial(counter.part, protocol)
            found = scorer.score(module, targets, protocol, progress)
            _add(scores, protocol, found)
        if scorer.truth is not None and (perfect := scorer.truth.perfect(targets)):
            scores.truth[f"perfect {protocol}"] = perfect
        if scorer.pictures is not None:
            with stages.stage("score whole pictures"):
                _score_pictures(scorer, scorer.pictures, protocol, targets, found.rows, module.backbone, scores)
    if scorer.concepts is not None:
        _score_concepts(scorer.concepts, scorer.folder, module, scores, stages)
    if is_first_process():
        write_rows(scorer.folder / FILE_NAME, scores.rows)
        write_networks(scorer.folder, scorer.settings.pictures)


def _score_pictures(
    scorer: Scorer,
    pictures: PictureScorer,
    protocol: str,
    targets: Targets,
    rows: Sequence[Row],
    backbone: Backbone,
    scores: Scores,
) -> None:
    """Numbers of whole pictures, for the set and for each line; and beside them what the autoencoder loses."""
    paths, prompts = [scorer.folder / row["image"] for row in rows], [row["prompt"] for row in rows]
    whole = pictures.score(targets, paths, prompts)
    scores.pictures[protocol] = whole.numbers
    for row, more in zip(rows, whole.rows, strict=True):
        row.update(more)
    if scorer.settings.ceiling_images:
        round_trip = functools.partial(vae_round_trip, backbone=backbone)
        some = targets[: scorer.settings.ceiling_images]
        scores.pictures[CEILING + protocol] = pictures.ceiling(some, round_trip)


def _score_concepts(
    concepts: ConceptScorer, folder: Path, module: PersonalizationModule, scores: Scores, stages: Stages
) -> None:
    for protocol in concepts.requests:
        with stages.stage("score concepts") as counter:
            rows, numbers = concepts.score(module, protocol, folder, functools.partial(counter.part, protocol))
        scores.pictures[protocol] = numbers
        scores.rows += rows


def _read_concepts(concepts: ConceptScorer, folder: Path, stored: Sequence[Row], scores: Scores) -> None:
    for protocol in concepts.requests:
        paths = [folder / row["image"] for row in stored if row["protocol"] == protocol]
        rows = concepts.read(protocol, paths, folder)
        scores.pictures[protocol] = concepts.numbers(protocol, rows)
        scores.rows += rows


def _add(scores: Scores, protocol: str, of_protocol: ProtocolScores) -> None:
    scores.protocols[protocol] = of_protocol.scores
    scores.rows += of_protocol.rows
    if of_protocol.truth:
        scores.truth[protocol] = of_protocol.truth


def score_untrained(
    scorer: Scorer, module: PersonalizationModule, scores: Scores, store: Store, stages: Stages
) -> None:
    """The same protocols before training, on the first few targets of each; once for all equal starts."""
    few = scorer.settings.untrained
    below = replace(scorer, folder=scorer.folder / "untrained", store=store)
    for protocol, targets in scorer.protocols().items() if few else ():
        with stages.stage("score untrained") as counter:
            progress = functools.partial(counter.part, protocol)
            found, truth = _remembered_score(below, module, targets[:few], protocol, progress, store)
        scores.untrained[protocol] = found
        if truth:
            scores.truth[f"untrained {protocol}"] = truth


def _remembered_score(
    scorer: Scorer,
    module: PersonalizationModule,
    targets: Targets,
    protocol: str,
    progress: Callable[[int, int], None],
    store: Store,
) -> tuple[PartScores, dict[str, float]]:
    """Scores of pictures, and against the truth; read again only if pictures, parts or the truth are others."""
    paths, prompts = scorer.draw(module, targets, protocol, progress)
    dictionary = scorer.predictor.dictionary
    parts = [dictionary.hash, list(dictionary.names)]
    truth = None if scorer.truth is None else [scorer.truth.hash, scorer.truth.species_of(targets).tolist()]
    about = [_VERSION, [recipe_of(path) for path in paths], targets.codes.tolist(), parts, truth]

    def read() -> dict[str, Any]:
        found = scorer.read(targets, protocol, paths, prompts)
        return {"truth": found.truth, **scores_as_values({"scores": found.scores})}

    values = remembered_values(store, "scores", about, read)
    return scores_of_values({"scores": values["scores"]})["scores"], values["truth"]


def say_scores(scores: Scores, stages: Stages) -> None:
    """A line per protocol."""
    for kind, group in (("", scores.protocols), ("untrained ", scores.untrained), ("ceiling ", scores.ceilings)):
        for protocol, values in group.items():
            stages.say(
                f"  {kind}{protocol}: EMR {values.emr['all']:.3f} (without background "
                f"{values.emr['without_background']:.3f}), CoSim {values.cosim['all']:.3f}, n = {values.num_images}"
            )
    for protocol, numbers in scores.truth.items():
        shown = ", ".join(f"{key} {value:.3f}" for key, value in numbers.items())
        stages.say(f"  against the truth, {protocol}: {shown}")
    for protocol, numbers in scores.pictures.items():
        stages.say(f"  whole pictures, {protocol}: " + ", ".join(f"{key} {v:.4g}" for key, v in numbers.items()))


def annotation_numbers(facts: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What discovery's report says of boxes and keypoints, as the "protocol" of the real images; empty without them."""
    found = facts.get("annotations", {})
    numbers = {key: value for key, value in found.items() if isinstance(value, float) and value == value}
    return {"real images": numbers} if numbers else {}


def _finite(numbers: Mapping[str, float]) -> dict[str, Any]:
    return {key: value if value == value else None for key, value in numbers.items()}
