"""Scores of a run: bounds before training, the trained model after it."""

from __future__ import annotations

import json

from partcraft_lit.callbacks.metrics_log import FILE_NAME, read_metrics, replace_metrics
from partcraft_lit.callbacks.pruning import pruned_at
from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.commands.train.logs import log_results
from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.progress import Stages
from partcraft_lit.evaluation.scoring import (
    Scorer,
    Scores,
    annotation_scores,
    concept_scorer,
    held_out_images,
    image_scorer,
    judge_scorer,
    labels_of,
    log_scores,
    measure_ceiling,
    score_trained,
    score_untrained,
    transfer_scorer,
    write_scores,
)
from partcraft_lit.evaluation.token_space import SILHOUETTE, write_token_space
from partcraft_lit.evaluation.truth import truth_of


def score_bounds(run: RunContext) -> None:
    """Between which scores the trained model's will lie: ceilings of real images, and the untrained model."""
    settings = run.settings.eval
    run.scorer = Scorer(
        settings,
        run.predictor,
        run.discovery.codes,
        labels_of(run.source),
        run.folder / "evaluation",
        truth_of(run.source, run.metadata),
        image_scorer(settings, run.source, run.image_features, run.metadata),
        concept_scorer(settings, run.source, run.image_features, run.part_names),
        transfers=transfer_scorer(
            settings, run.source, run.image_features, run.metadata, run.predictor, run.discovery.codes
        ),
        held_out=held_out_images(settings, run.source, run.predictor, run.image_features, run.metadata),
        judges=judge_scorer(
            settings,
            run.judges,
            run.source,
            run.discovery.label_maps,
            run.discovery.codes,
            run.discovery.dictionary,
            run.metadata,
            run.store,
        ),
    )
    run.scores = Scores(truth=annotation_scores(run.metadata), codes=run.metadata["lowered_codes"])
    if not settings.enabled:
        return
    run.scorer.log_left_out(run.stages)
    with run.stages.stage("measure ceilings"):
        run.scores.ceilings = measure_ceiling(run.scorer, run.source, run.backbone, run.store)
    score_untrained(run.scorer, run.module, run.scores, run.store, run.stages)


def score(run: RunContext) -> None:
    """Scores the trained model; further processes of a run draw their share of the images and write nothing.

    A model whose training a search has ended is not worth it.
    """
    stopped = pruned_at(run.training.callbacks)
    enabled = run.settings.eval.enabled and stopped is None
    if not is_first_process():
        if enabled:
            score_trained(run.scorer, run.module, run.scores, Stages())
        run.metrics = run.scores.flat()
        return
    dictionary = run.discovery.dictionary
    with run.stages.stage("map tokens"):
        silhouette = write_token_space(
            run.folder, run.module.method.bake(), dictionary.codes_per_part, dictionary.names
        )
    _log(run, {SILHOUETTE: silhouette})
    if stopped is not None:
        run.notes.append(f"A search ended the training after step {stopped}: other trials did better by then.")
        run.stages.log(f"  {run.notes[-1]} It is not scored.")
    if enabled:
        score_trained(run.scorer, run.module, run.scores, run.stages)
        log_scores(run.scores, run.stages)
    _write_costs(run)
    run.metrics = write_scores(run.scores, run.folder)
    if run.metrics:
        _log(run, run.metrics)
    for logger in run.training.loggers:
        log_results(logger, run.folder, run.metrics, run.scores.rows)


def _write_costs(run: RunContext) -> None:
    """``costs.json``: what training took; of a run that was continued, since it was."""
    trained = sum(p.numel() for group in run.module.trainable_groups().values() for p in group)
    seconds = run.stages.seconds
    costs = {"trainable_parameters": trained, "train_seconds": round(seconds.get("train", 0.0), 3), "seconds": seconds}
    atomic_write(run.folder / "costs.json", json.dumps(costs, indent=1) + "\n")


def _log(run: RunContext, metrics: dict[str, float]) -> None:
    """Into ``metrics.jsonl``, on the axis of the last step that was logged; instead of what an earlier start scored."""
    path = run.folder / FILE_NAME
    last = max((points[-1][0] for points in read_metrics(path).values()), default=0)
    replace_metrics(path, last, metrics)
