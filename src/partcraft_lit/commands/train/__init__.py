"""``partcraft train``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.train import runs
from partcraft_lit.config import factories
from partcraft_lit.config.identity import run_identity
from partcraft_lit.config.validation import validate
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.loggers.identity import write_identity
from partcraft_lit.runs.settings import TrainSettings

_log = logging.getLogger(__name__)
#: How the names of scores begin; see ``evaluation.scoring.Scores.flat``.
_SCORES = ("eval", "truth", "pictures", "untrained", "ceiling", "codes", "tokens")


def check(values: Mapping[str, Any]) -> TrainSettings:
    factories.check_choices(values)
    factories.check_trainer(values["trainer"])
    factories.check_model_sizes(values)
    runs.check_ckpt_path(values)
    _check_objective(values)
    settings = factories.settings_of(TrainSettings, values)
    factories.make_callbacks(values, settings.loss)
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    return runs.choose_run_folder("train", values)


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    if environment.is_first_process():
        environment.write(folder)
        write_identity(folder, run_identity(values, folder))

    from partcraft_lit.commands.train.context import Loaders, Training
    from partcraft_lit.commands.train.train import train
    from partcraft_lit.loggers.run_logger import finished
    from partcraft_lit.runs.memory import in_passes

    settings, passes = in_passes(settings)
    make_trainer = factories.trainer_maker(values, passes)
    callbacks = factories.make_callbacks(values, settings.loss)
    source = factories.make_source(values)
    factories.check_words(values, settings, source.class_noun)
    loggers = factories.make_loggers(values, folder)
    with finished(loggers):
        scores = train(
            settings,
            folder,
            source=source,
            load=Loaders(
                factories.backbone_loader(values),
                factories.features_loader(values),
                factories.image_features_loader(values),
            ),
            training=Training(make_trainer, callbacks, loggers),
            resume_from=runs.resume_from(values, folder),
            config=dict(values),
        )
    if environment.is_first_process():
        rundir.mark_finished(folder)
    return _for_sweeper(scores, values["objective"], values["objective_if_nan"])


def _check_objective(values: Mapping[str, Any]) -> None:
    objective = validate(values["objective"], str | None, "objective")
    if objective is not None and values["eval"]["enabled"] is False:
        raise UserError(f"objective={objective} is a score, and eval.enabled=false computes none.")
    if objective is not None and objective.partition("/")[0] not in _SCORES:
        raise UserError(
            f"objective={objective}: no score has this name. Scores begin with {', '.join(_SCORES)}; those of a run "
            "are the keys of its scores.json, for instance eval/emr@reconstruction."
        )
    validate(values["objective_if_nan"], float, "objective_if_nan")  # refuses what is not finite


def _for_sweeper(scores: Mapping[str, float], objective: str | None, if_nan: float) -> dict[str, float] | float:
    """What a sweeper hears: the objective, always finite; without one, all scores that are finite.

    Raises:
        UserError: if no score has the name of the objective.
    """
    if objective is None:
        return {key: value for key, value in scores.items() if math.isfinite(value)}
    if objective not in scores:
        raise UserError(f"objective={objective}: the run has no such score. {did_you_mean(objective, scores)}")
    value = float(scores[objective])
    if math.isfinite(value):
        return value
    _log.warning("objective=%s is %s; the sweep is told objective_if_nan=%s instead.", objective, value, if_nan)
    return float(if_nan)
