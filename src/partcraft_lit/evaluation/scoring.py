"""Scores all protocols of a model: before training, after it, and between which bounds the numbers lie."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store
from partcraft_lit.core.store.cached import cached_values
from partcraft_lit.core.types import Backbone, ImageSource
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
from partcraft_lit.evaluation.judging import ALL_IMAGES, REAL_IMAGES, JudgeScorer
from partcraft_lit.evaluation.sampling import recipe_of
from partcraft_lit.evaluation.scorer import Scorer
from partcraft_lit.evaluation.scores import CEILING, ProtocolScores, Scores, scores_as_values, scores_of_values
from partcraft_lit.evaluation.transfer import TransferScorer
from partcraft_lit.evaluation.whole_images import ImageScorer
from partcraft_lit.metrics.composition import PartScores, Targets, ceiling, vae_round_trip
from partcraft_lit.module import PersonalizationModule

#: Raise by one when equal images would be scored otherwise.
_VERSION = 1


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
        with stages.stage("score", protocol) as counter:
            progress = functools.partial(counter.part, protocol)
            of_protocol = read[protocol] = own.score(module, targets, protocol, progress)
            add_protocol(scores, protocol, of_protocol)
        if own.truth is not None and (perfect := own.truth.perfect(targets)):
            scores.truth[f"perfect {protocol}"] = perfect.means
            scores.truth[protocol]["excess_error"] = _subtract_floor(of_protocol.rows, perfect.rows)
        if own.pictures is not None:
            with stages.stage("score whole images", protocol):
                _score_pictures(own, own.pictures, protocol, targets, of_protocol.rows, module.backbone, scores)
    if scorer.judges is not None:
        _score_judges(scorer, scorer.judges, read, scores, stages)
    if scorer.concepts is not None:
        _score_requests(scorer, scorer.concepts, tuple(scorer.concepts.requests), module, scores, stages)
    if scorer.transfers is not None:
        _score_requests(scorer, scorer.transfers, scorer.transfers.protocols, module, scores, stages)


def add_protocol(scores: Scores, protocol: str, of_protocol: ProtocolScores) -> None:
    scores.protocols[protocol] = of_protocol.scores
    scores.rows += of_protocol.rows
    if of_protocol.truth:
        scores.truth[protocol] = of_protocol.truth


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
        with stages.stage(f"score {kind}", protocol) as counter:
            progress = functools.partial(counter.part, protocol)
            rows, metrics = requests.score(module, protocol, scorer.folder, progress, scorer.draw_images)
        scores.pictures[protocol] = metrics
        scores.rows += rows


def score_untrained(
    scorer: Scorer, module: PersonalizationModule, scores: Scores, store: Store | None, stages: Stages
) -> None:
    """The same protocols before training, on the first few targets of each; with a store once for all equal starts."""
    few = scorer.settings.untrained
    below = replace(scorer, folder=scorer.folder / "untrained", store=store)
    for protocol, targets in scorer.protocols().items() if few else ():
        with stages.stage("score untrained", protocol) as counter:
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
