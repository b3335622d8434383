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
from partcraft_lit.errors import UserError
from partcraft_lit.files import atomic_write
from partcraft_lit.metrics.composition import (
    PartScores,
    Targets,
    ceiling,
    composition_targets,
    reconstruction_targets,
    score_targets,
)
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import read_parts
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.pictures import save_png
from partcraft_lit.run.assembly import build_module
from partcraft_lit.run.stages import Stages
from partcraft_lit.run.truth import TruthScorer, as_numbers
from partcraft_lit.settings import EvalSettings, TrainSettings
from partcraft_lit.store import Store
from partcraft_lit.types import Backbone, ImageSource, PatchFeatures


@dataclass
class Scores:
    """Everything that was scored.

    Attributes:
        protocols: "reconstruction", "2 species", ... -> scores of the trained model.
        untrained: the same for the model before training, for protocols where it was measured.
        ceilings: real images read twice: "vae_round_trip", "mirrored", "recropped".
        truth: numbers that need the truth, by protocol; empty where it is not known.
    """

    protocols: dict[str, PartScores] = field(default_factory=dict)
    untrained: dict[str, PartScores] = field(default_factory=dict)
    ceilings: dict[str, PartScores] = field(default_factory=dict)
    truth: dict[str, dict[str, float]] = field(default_factory=dict)

    def flat(self) -> dict[str, float]:
        """One number per key, for logs and files."""
        numbers: dict[str, float] = {}
        for prefix, group in (("eval", self.protocols), ("untrained", self.untrained), ("ceiling", self.ceilings)):
            for protocol, scores in group.items():
                numbers.update(scores.flat(protocol.replace(" ", "_"), prefix))
        for protocol, values in self.truth.items():
            numbers.update({f"truth/{key}@{protocol.replace(' ', '_')}": value for key, value in values.items()})
        return numbers


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
    """

    settings: EvalSettings
    predictor: KMeansPartPredictor
    codes: Tensor
    labels: Tensor | None
    folder: Path
    truth: TruthScorer | None = None

    def protocols(self) -> dict[str, Targets]:
        """What is asked for, by protocol."""
        chosen = self.settings
        wanted: dict[str, Targets] = {}
        if chosen.reconstructions:
            wanted["reconstruction"] = reconstruction_targets(self.codes, chosen.reconstructions, chosen.seed)
        for species in chosen.species if chosen.compositions else ():
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
    ) -> tuple[PartScores, dict[str, float]]:
        """Generates, keeps and scores the pictures of one protocol; with what the truth says, where it is known."""
        done = 0
        accuracy = self.truth.accuracy() if self.truth else None
        species = self.truth.species_of(targets) if self.truth else None

        def generate(codes: Tensor, seeds: Sequence[int]) -> Tensor:
            nonlocal done
            prompts = [module.method.plain_caption(row) for row in codes]
            images = module.generate(prompts, seeds)
            for image, prompt, seed in zip(images, prompts, seeds, strict=True):
                recipe = {"prompt": prompt, "seed": seed, "protocol": protocol}
                save_png(self.folder / protocol.replace(" ", "_") / f"{done:05d}.png", image, recipe)
                done += 1
            if accuracy is not None and species is not None:
                accuracy.update(images, species[done - len(images) : done])
            return images

        names = self.predictor.dictionary.names
        on_batch = None if progress is None else (lambda count: progress(count, len(targets)))
        scores = score_targets(targets, generate, self.predictor, names, on_batch=on_batch)
        return scores, {} if accuracy is None else as_numbers(accuracy)


def measure_ceiling(scorer: Scorer, source: ImageSource, backbone: Backbone) -> dict[str, PartScores]:
    """Real images, changed a little and read again: no generated picture can be expected to score higher."""
    most = min(scorer.settings.ceiling_images, len(source))
    if most == 0:
        return {}
    indices = torch.linspace(0, len(source) - 1, most).round().long().tolist()
    return ceiling(source, scorer.predictor, backbone, indices, scorer.predictor.dictionary.names)


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
) -> dict[str, float]:
    """``partcraft evaluate``: scores a finished run again, with other numbers of pictures if wanted.

    Returns:
        One number per key, as in ``scores.json``.
    """
    stages = Stages()
    backbone = load_backbone()
    module, dictionary = load_trained(settings, run_folder, backbone, source.class_noun)
    features = load_features()
    predictor = KMeansPartPredictor(dictionary, features)
    with stages.stage("read parts") as counter:
        store = Store(settings.paths.store)
        _, codes, _ = read_parts(source, features, dictionary, store=store, progress=counter.part)
    facts = json.loads((run_folder / "parts" / "discovery.json").read_text())
    truth = TruthScorer.of(source, facts)
    scorer = Scorer(settings.eval, predictor, codes, labels_of(source), folder, truth)
    scores = Scores()
    with stages.stage("measure ceilings"):
        scores.ceilings = measure_ceiling(scorer, source, backbone)
    score_trained(scorer, module, scores, stages)
    numbers = write_scores(scores, folder)
    say_scores(scores, stages)
    stages.say(f"Scores: {folder / 'scores.json'}")
    return numbers


def score_trained(scorer: Scorer, module: PersonalizationModule, scores: Scores, stages: Stages) -> None:
    """All protocols of the trained model."""
    for protocol, targets in scorer.protocols().items():
        with stages.stage("score") as counter:
            progress = functools.partial(counter.part, protocol)
            scores.protocols[protocol], truth = scorer.score(module, targets, protocol, progress)
        if truth:
            scores.truth[protocol] = truth


def score_untrained(scorer: Scorer, module: PersonalizationModule, scores: Scores, stages: Stages) -> None:
    """The same protocols before training, on the first few targets of each."""
    few = scorer.settings.untrained
    below = replace(scorer, folder=scorer.folder / "untrained")
    for protocol, targets in scorer.protocols().items() if few else ():
        with stages.stage("score untrained") as counter:
            progress = functools.partial(counter.part, protocol)
            scores.untrained[protocol], truth = below.score(module, targets[:few], protocol, progress)
        if truth:
            scores.truth[f"untrained {protocol}"] = truth


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


def _finite(numbers: Mapping[str, float]) -> dict[str, Any]:
    return {key: value if value == value else None for key, value in numbers.items()}
