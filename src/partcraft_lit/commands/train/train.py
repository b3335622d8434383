"""The main job as a list of stages, in the order of the paper: discover, cache, build, fit, score, report."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.train.cache import cache
from partcraft_lit.commands.train.context import Loaders, RunContext, Training
from partcraft_lit.commands.train.fit import fit
from partcraft_lit.commands.train.logs import describe
from partcraft_lit.commands.train.report import report
from partcraft_lit.commands.train.score import score, score_bounds
from partcraft_lit.core.store import stable_hash
from partcraft_lit.core.types import ImageSource
from partcraft_lit.data.part_mixing import check_mixing
from partcraft_lit.data.prior import prior_prompt
from partcraft_lit.methods.method import DrawsItself
from partcraft_lit.parts.corrected_discovery import CorrectionSources
from partcraft_lit.parts.dataset_parts import check_dataset_parts
from partcraft_lit.parts.exemplars import crop_of_code
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.runs.assembly import build_module
from partcraft_lit.runs.discovery import discover_into, write_rejected
from partcraft_lit.runs.memory import batch_limit_note
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.step_probe import check_batch_fits


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    source: ImageSource,
    load: Loaders,
    training: Training,
    resume_from: Path | None,
    config: Mapping[str, Any],
    corrections: CorrectionSources | None = None,
) -> dict[str, float]:
    """Runs everything from a folder of images to scores and a report.

    Args:
        settings, folder, source, load, training, resume_from, config, corrections: see :class:`RunContext`.

    Returns:
        One number per key, as in ``scores.json``; empty if scoring is switched off.
    """
    run = RunContext(settings, folder, source, load, training, resume_from, config, corrections or CorrectionSources())
    for stage in STAGES:
        stage(run)
    return run.metrics


def check(run: RunContext) -> None:
    """Settings that do not go with the images; before any network is loaded.

    Raises:
        UserError: for what cannot be trained.
    """
    settings, source = run.settings, run.source
    settings.method.check(settings, source.class_noun)
    check_mixing(settings.data, settings.loss)
    if settings.parts.source != "discover":
        check_dataset_parts(source, settings.parts)
    if settings.prior.weight:
        prior_prompt(settings.prior, source.class_noun)
    run.notes = write_rejected(source, run.folder, run.stages)
    if note := batch_limit_note(settings):
        run.notes.append(note)
        run.stages.log(note)


def load_models(run: RunContext) -> None:
    with run.stages.stage("load models"):
        run.judges = run.load.judges() if run.settings.eval.enabled else {}  # load little, and tell what they lack
        run.backbone, run.features = run.load.backbone(), run.load.features()
        run.image_features = run.load.image_features() if run.settings.eval.enabled else []
    if run.backbone.text_format is None:  # else the method checks them when it is built
        run.settings.method.check_words(run.backbone.tokenizers, run.source.class_noun)


def check_memory(run: RunContext) -> None:
    """A batch that this machine cannot hold, while nothing has been computed yet."""
    precision = str(run.config.get("trainer", {}).get("precision", "32-true"))
    check_batch_fits(run.settings, run.load.backbone, run.source.class_noun, precision)


def discover(run: RunContext) -> None:
    """Finds the parts, or takes them from the store."""
    settings = run.settings
    run.discovery, run.metadata = discover_into(
        run.folder, settings.parts, settings.seed, run.source, run.features, run.store, run.stages, run.corrections
    )
    run.predictor = KMeansPartPredictor(run.discovery.dictionary, run.features)


def build(run: RunContext) -> None:
    """Puts method and backbone together; from here on the backbone has its adapter."""
    run.module = build_module(run.settings, run.discovery.dictionary, run.backbone, run.source.class_noun)
    if isinstance(run.module.method, DrawsItself):
        crop_of = functools.partial(crop_of_code, run.source, run.discovery)
        images = [run.source.content_hash(index) for index in range(len(run.source))]
        run.module.method.bind_images(crop_of, stable_hash([run.discovery.dictionary.hash, *images]))


#: In this order; each takes from the context what those before it have filled in.
STAGES: tuple[Callable[[RunContext], None], ...] = (
    check,
    load_models,
    check_memory,
    discover,
    cache,
    build,
    describe,
    score_bounds,
    fit,
    score,
    report,
)
