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
from partcraft_lit.evaluation.scorer import make_scorer
from partcraft_lit.evaluation.scores import Scores, annotation_scores, log_scores, write_scores
from partcraft_lit.evaluation.scoring import measure_ceiling, score_trained, score_untrained
from partcraft_lit.evaluation.token_space import SILHOUETTE, write_token_space


def score_bounds(run: RunContext) -> None:
    """Between which scores the trained model's will lie: ceilings of real images, and the untrained model."""
    settings = run.settings.eval
    run.scorer = make_scorer(
        settings,
        run.folder / "evaluation",
        source=run.source,
        predictor=run.predictor,
        codes=run.discovery.codes,
        label_maps=run.discovery.label_maps,
        metadata=run.metadata,
        store=run.store,
        networks=run.image_features,
        judges=run.judges,
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
