"""Scores of a run that has ended, computed again or compared with those that are stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from partcraft_lit.commands.train.assembly import load_trained
from partcraft_lit.commands.train.settings import TrainSettings
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
from partcraft_lit.evaluation.scoring import (
    Scorer,
    Scores,
    add_protocol,
    annotation_scores,
    concept_scorer,
    image_scorer,
    labels_of,
    log_scores,
    measure_ceiling,
    read_concepts,
    score_trained,
    write_scores,
)
from partcraft_lit.evaluation.truth import truth_of
from partcraft_lit.metrics.features import ImageFeatures
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import read_parts
from partcraft_lit.parts.predictor import KMeansPartPredictor


def evaluate(
    settings: TrainSettings,
    folder: Path,
    *,
    run_folder: Path,
    source: ImageSource,
    load_backbone: Callable[[], Backbone],
    load_features: Callable[[], PatchFeatures],
    load_image_features: Callable[[], Sequence[ImageFeatures]],
) -> dict[str, float]:
    """``partcraft evaluate``: scores a finished run again, with other numbers of images if wanted.

    Returns:
        One number per key, as in ``scores.json``.
    """
    stages = Stages()
    networks = load_image_features()  # before anything is drawn: one that is missing is told at once
    backbone = load_backbone()
    module, dictionary = load_trained(settings, run_folder, backbone, source.class_noun)
    scorer = scorer_of_run(settings, folder, run_folder, source, load_features(), dictionary, stages)
    facts = json.loads((run_folder / "parts" / "discovery.json").read_text(encoding="utf-8"))
    scorer = replace(
        scorer,
        pictures=image_scorer(settings.eval, source, networks, facts),
        concepts=concept_scorer(settings.eval, source, networks, dictionary.names),
    )
    scores = Scores(truth=annotation_scores(facts), codes=facts.get("lowered_codes", {}))
    with stages.stage("measure ceilings"):
        scores.ceilings = measure_ceiling(scorer, source, backbone, Store(settings.paths.store))
    scorer.log_left_out(stages)
    score_trained(scorer, module, scores, stages)
    if not is_first_process():
        return scores.flat()
    numbers = write_scores(scores, folder)
    log_scores(scores, stages)
    stages.log(f"Scores: {folder / 'scores.json'}, of each image: {folder / FILE_NAME}")
    return numbers


def verify(
    settings: TrainSettings,
    folder: Path,
    *,
    run_folder: Path,
    source: ImageSource,
    load_features: Callable[[], PatchFeatures],
    load_image_features: Callable[[], Sequence[ImageFeatures]],
) -> int:
    """``partcraft evaluate verify=true``: computes every number again from the stored images.

    That is each line of ``scores.csv``, and of ``scores.json`` the means over them and what was said of whole images.

    Returns:
        Number of images that were read.

    Raises:
        UserError: if an image is missing, or a number is another one; it names them.
    """
    stages = Stages()
    stored = read_rows(folder / FILE_NAME)
    gone = [row["image"] for row in stored if not (folder / row["image"]).is_file()]
    if gone:
        raise UserError(
            f"{len(gone)} images of {folder} are gone, for instance {gone[0]}. partcraft evaluate "
            f"run={run_folder} draws them again."
        )
    dictionary = PartDictionary.load(run_folder / "parts")
    scorer = scorer_of_run(settings, folder, run_folder, source, load_features(), dictionary, stages)
    networks = load_image_features()
    facts = json.loads((run_folder / "parts" / "discovery.json").read_text(encoding="utf-8"))
    pictures = image_scorer(settings.eval, source, networks, facts)
    again = Scores()
    with stages.stage("verify"):
        for protocol, targets in scorer.protocols().items():
            of_protocol = [row for row in stored if row["protocol"] == protocol][: len(targets)]
            some = targets[: len(of_protocol)]
            paths, prompts = [folder / row["image"] for row in of_protocol], [row["prompt"] for row in of_protocol]
            of_parts = scorer.read(some, protocol, paths, prompts)
            add_protocol(again, protocol, of_parts)
            if pictures is not None:
                whole = pictures.score(some, paths, prompts)
                again.pictures[protocol] = whole.numbers
                for row, more in zip(of_parts.rows, whole.rows, strict=True):
                    row.update({key: value for key, value in more.items() if key in stored[0]})
        concepts = concept_scorer(settings.eval, source, networks, dictionary.names)
        if concepts is not None:
            read_concepts(concepts, folder, stored, again)
    found = differences(stored, again.rows)
    if found:
        raise UserError(_differences_in_words(found, folder / FILE_NAME))
    if found := score_differences(stored_scores(run_folder, folder), again.flat()):
        raise UserError(_differences_in_words(found, folder / "scores.json"))
    stages.log(
        f"{len(again.rows)} images read again: every number of {folder / FILE_NAME} and their means are the same."
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
    facts = json.loads((run_folder / "parts" / "discovery.json").read_text(encoding="utf-8"))
    return Scorer(settings.eval, predictor, codes, labels_of(source), folder, truth_of(source, facts))
