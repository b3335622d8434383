"""``partcraft train``: discovers parts if needed, trains, samples, scores and writes the report."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partcraft_lit.commands.train import runs
from partcraft_lit.commands.train.branches import check_own_folder, describe_parent, named_checkpoint, parent_of
from partcraft_lit.config import factories
from partcraft_lit.config.identity import run_identity
from partcraft_lit.config.validation import validate
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.loggers.identity import write_identity
from partcraft_lit.runs.corrections import corrections_of
from partcraft_lit.runs.settings import TrainSettings

_log = logging.getLogger(__name__)
#: How the names of scores begin; see ``evaluation.scores.Scores.flat``.
_SCORES = ("eval", "truth", "pictures", "judge", "untrained", "ceiling", "codes", "tokens")


def check(values: Mapping[str, Any]) -> TrainSettings:
    factories.check_choices(values)
    factories.check_trainer(values["trainer"])
    factories.check_model_sizes(values)
    runs.check_ckpt_path(values)
    _check_objective(values)
    settings = factories.settings_of(TrainSettings, values)
    factories.check_backbone_kind(values)
    factories.make_callbacks(values, settings.loss)
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    return runs.choose_run_folder("train", values)


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    resume_from, parent = runs.resume_from(values, folder), None
    if (checkpoint := named_checkpoint(values)) is not None:
        check_own_folder(folder, checkpoint)
        parent = parent_of(folder) or describe_parent(checkpoint)
    if environment.is_first_process():
        environment.write(folder, parent)
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
    corrections = corrections_of(values, folder, resume_from)
    with finished(loggers):
        scores = train(
            settings,
            folder,
            source=source,
            load=Loaders(
                factories.backbone_loader(values),
                factories.features_loader(values),
                factories.image_features_loader(values),
                factories.judges_loader(values),
            ),
            training=Training(make_trainer, callbacks, loggers, factories.time_limit(values)),
            resume_from=resume_from,
            config=dict(values),
            corrections=corrections,
        )
    from partcraft_lit.callbacks.pruning import pruned_at

    objectives, stopped = _objectives(values), pruned_at(callbacks)
    if environment.is_first_process():
        found = {name: _finite(scores.get(name)) for name in objectives}
        # A search reads it here, whatever has run the job.
        rundir.mark_finished(
            folder,
            **({"objective": found} if objectives else {}),
            **({} if stopped is None else {"pruned_at": stopped}),
        )
    return None if stopped is not None else _for_sweeper(scores, values["objective"], values["objective_if_nan"])


def _check_objective(values: Mapping[str, Any]) -> None:
    for objective in _objectives(values):
        if values["eval"]["enabled"] is False:
            raise UserError(f"objective={objective} is a score, and eval.enabled=false computes none.")
        if objective.partition("/")[0] not in _SCORES:
            raise UserError(
                f"objective={objective}: no score has this name. Scores begin with {', '.join(_SCORES)}; those of a "
                "run are the keys of its scores.json, for instance eval/emr@reconstruction."
            )
        if objective.startswith("eval/"):
            _check_eval_score(objective, values["eval"])
    validate(values["objective_if_nan"], float | None, "objective_if_nan")  # refuses what is not finite


def _check_eval_score(objective: str, settings: Mapping[str, Any]) -> None:
    """Those of the part metrics, whose protocols are known before anything runs."""
    metric, _, protocol = objective.removeprefix("eval/").partition("@")
    protocols = ["reconstruction"] if settings.get("reconstructions") else []
    protocols += ["held-out_reconstruction"] if settings.get("held_out") else []
    if settings.get("compositions") and isinstance(settings.get("species"), list):
        protocols += [f"{species}_species" for species in settings["species"]]
    known = [f"eval/{name}@{place}" for name in ("emr", "cosim") for place in protocols]
    if metric.partition("_")[0] not in ("emr", "cosim") or protocol not in protocols:
        raise UserError(f"objective={objective}: this run has no such score. {did_you_mean(objective, known)}")


def _objectives(values: Mapping[str, Any]) -> tuple[str, ...]:
    given = validate(values["objective"], str | tuple[str, ...] | None, "objective")
    return () if given is None else (given,) if isinstance(given, str) else tuple(given)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _for_sweeper(
    scores: Mapping[str, float], objective: str | Sequence[str] | None, if_nan: float | None
) -> dict[str, float] | list[float] | float:
    """What a sweeper hears: the objective, or a list of several; without one, all scores that are finite.

    Args:
        scores: of the run.
        objective: names of scores.
        if_nan: instead of a value that is not finite; None leaves it.

    Raises:
        UserError: if no score has the name of an objective.
    """
    if objective is None:
        return {key: value for key, value in scores.items() if math.isfinite(value)}
    if not isinstance(objective, str):
        return [_value(scores, name, if_nan) for name in objective]
    return _value(scores, objective, if_nan)


def _value(scores: Mapping[str, float], objective: str, if_nan: float | None) -> float:
    if objective not in scores:
        raise UserError(f"objective={objective}: the run has no such score. {did_you_mean(objective, scores)}")
    value = float(scores[objective])
    if math.isfinite(value) or if_nan is None:
        return value
    _log.warning("objective=%s is %s; the sweep is told objective_if_nan=%s instead.", objective, value, if_nan)
    return float(if_nan)
