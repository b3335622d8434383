"""``partcraft train``."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit import environment, rundir
from partcraft_lit.errors import UserError, did_you_mean
from partcraft_lit.settings import TrainSettings
from partcraft_lit.strict import coerce
from partcraft_lit.verbs import wiring

_log = logging.getLogger(__name__)


def check(values: Mapping[str, Any]) -> TrainSettings:
    wiring.check_choices(values)
    wiring.check_ckpt_path(values)
    _check_objective(values)
    return wiring.settings_of(TrainSettings, values)


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    return wiring.choose_run_folder("train", values)


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    if environment.is_first_process():
        environment.write(folder)

    from partcraft_lit.run import train
    from partcraft_lit.run.memory import in_passes

    settings, passes = in_passes(settings)
    make_trainer = wiring.trainer_maker(values, passes)
    source = wiring.make_source(values)
    wiring.check_words(values, settings, source.class_noun)
    scores = train(
        settings,
        folder,
        source=source,
        load_backbone=wiring.backbone_loader(values),
        load_features=wiring.features_loader(values),
        make_trainer=make_trainer,
        load_picture_features=wiring.picture_features_loader(values),
        loggers=wiring.make_loggers(values, folder),
        callbacks=wiring.callback_makers(values),
        make_attention_loss=wiring.attention_loss_maker(values, settings),
        resume_from=wiring.resume_from(values, folder),
        config=dict(values),
    )
    if environment.is_first_process():
        rundir.mark_finished(folder)
    return _for_sweeper(scores, values["objective"], values["objective_if_nan"])


def _check_objective(values: Mapping[str, Any]) -> None:
    objective = coerce(values["objective"], str | None, "objective")
    if objective is not None and values["eval"]["enabled"] is False:
        raise UserError(f"objective={objective} is a score, and eval.enabled=false computes none.")
    coerce(values["objective_if_nan"], float, "objective_if_nan")  # refuses what is not finite


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
