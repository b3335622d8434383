"""Scores of a run that has ended, computed again or compared with those that are stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import Backbone, ImageSource, PatchFeatures
from partcraft_lit.evaluation.image_scores import (
    FILE_NAME,
    differences,
    read_rows,
    score_differences,
    stored_scores,
)
from partcraft_lit.evaluation.judging import PREFIX
from partcraft_lit.evaluation.sampling import require_drawn
from partcraft_lit.evaluation.scorer import Scorer, make_scorer
from partcraft_lit.evaluation.scores import Scores, annotation_scores, log_scores, write_scores
from partcraft_lit.evaluation.scoring import measure_ceiling, score_images, score_trained, score_untrained
from partcraft_lit.judges.judge import PartJudge
from partcraft_lit.metrics.features import ImageFeatures
from partcraft_lit.parts.corrections import name_codes
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import read_parts
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.runs.assembly import build_module, load_trained, load_weights, trained_checkpoint
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.stored import discovery_metadata

T = TypeVar("T")


def evaluate(
    settings: TrainSettings,
    folder: Path,
    *,
    run_folder: Path,
    source: ImageSource,
    load_backbone: Callable[[], Backbone],
    load_features: Callable[[], PatchFeatures],
    load_image_features: Callable[[], Sequence[ImageFeatures]],
    load_judges: Callable[[], Mapping[str, PartJudge]],
) -> dict[str, float]:
    """``partcraft evaluate``: scores a finished run again, with other numbers of images if wanted.

    Returns:
        One number per key, as in ``scores.json``.
    """
    stages = Stages()
    networks, judges = load_image_features(), load_judges()  # a missing one is reported before anything is drawn
    backbone = load_backbone()
    module, dictionary = load_trained(settings, run_folder, backbone, source.class_noun)
    for part, codes in module.untrained_codes.items():
        stages.log(f"  untrained, and scored all the same: {name_codes(dictionary.names[part], codes)}")
    scorer = scorer_of_run(settings, folder, run_folder, source, load_features(), dictionary, stages, networks, judges)
    scores = _scores_of_data(scorer, source, backbone, settings, run_folder, stages)
    scorer.log_left_out(stages)
    score_trained(scorer, module, scores, stages)
    if not is_first_process():
        return scores.flat()
    metrics = write_scores(scores, folder)
    log_scores(scores, stages)
    stages.log(f"Scores: {folder / 'scores.json'}, of each image: {folder / FILE_NAME}")
    return metrics


def verify(
    settings: TrainSettings,
    folder: Path,
    *,
    run_folder: Path,
    source: ImageSource,
    load_backbone: Callable[[], Backbone],
    load_features: Callable[[], PatchFeatures],
    load_image_features: Callable[[], Sequence[ImageFeatures]],
) -> int:
    """``partcraft evaluate verify=true``: computes every number again from the stored images.

    That is each cell of ``scores.csv`` and each number of ``scores.json``. Nothing is taken from these files: prompts,
    seeds and codes are those of the settings, and an image counts only if its recipe is that of this run's weights.
    What judges said is left out: their networks may be large, and need not be at hand here.

    Returns:
        Number of images that were read.

    Raises:
        UserError: if an image is missing or another one, or a number differs or cannot be computed again; it names
            them.
    """
    stages = Stages()
    stored = [_without_judges(row) for row in read_rows(folder / FILE_NAME)]
    numbers = _without_judges(all_numbers := stored_scores(run_folder, folder))
    if judged := len(all_numbers) - len(numbers):
        stages.log(f"  not verified: {judged} scores of judges; evaluate with eval.judge asks them again")
    checkpoint = trained_checkpoint(run_folder)
    dictionary = PartDictionary.load(run_folder / "parts")
    networks, backbone = load_image_features(), load_backbone()
    module = build_module(settings, dictionary, backbone, source.class_noun)
    scorer = scorer_of_run(settings, folder, run_folder, source, load_features(), dictionary, stages, networks)
    scorer = replace(scorer, draw_images=require_drawn)
    scores = _scores_of_data(scorer, source, backbone, settings, run_folder, stages)
    if any(key.startswith("untrained/") for key in numbers):
        module.to(next(backbone.denoiser.parameters()).device).eval()
        score_untrained(scorer, module, scores, None, stages)
    load_weights(module, checkpoint)
    score_images(scorer, module, scores, stages)
    if found := differences(stored, scores.rows):
        raise UserError(_differences_in_words(found, folder / FILE_NAME))
    if found := score_differences(numbers, scores.flat()):
        raise UserError(_differences_in_words(found, folder / "scores.json"))
    stages.log(
        f"{len(scores.rows)} images read again: every number of {folder / FILE_NAME} and of scores.json is the same."
    )
    return len(scores.rows)


def _without_judges(scores: Mapping[str, T]) -> dict[str, T]:
    return {key: value for key, value in scores.items() if not key.startswith(PREFIX)}


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
    networks: Sequence[ImageFeatures] = (),
    judges: Mapping[str, PartJudge] | None = None,
) -> Scorer:
    """The scorer of a run that has ended, from its dictionary and the store."""
    predictor = KMeansPartPredictor(dictionary, features)
    with stages.stage("read parts") as counter:
        store = Store(settings.paths.store)
        label_maps, codes, _ = read_parts(source, features, dictionary, store=store, progress=counter.part)
    return make_scorer(
        settings.eval,
        folder,
        source=source,
        predictor=predictor,
        codes=codes,
        label_maps=label_maps,
        metadata=discovery_metadata(run_folder),
        store=store,
        networks=networks,
        judges=judges,
    )


def _scores_of_data(
    scorer: Scorer, source: ImageSource, backbone: Backbone, settings: TrainSettings, run_folder: Path, stages: Stages
) -> Scores:
    """Scores that no generated image has a part in: of annotations, numbers of codes, ceilings."""
    metadata = discovery_metadata(run_folder)
    scores = Scores(truth=annotation_scores(metadata), codes=metadata.get("lowered_codes", {}))
    with stages.stage("measure ceilings"):
        scores.ceilings = measure_ceiling(scorer, source, backbone, Store(settings.paths.store))
    return scores
