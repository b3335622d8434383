"""``partcraft evaluate``: the scores of a run."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.train import runs
from partcraft_lit.config import compose as config
from partcraft_lit.config import factories, targets
from partcraft_lit.config.validation import validate
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import Positive
from partcraft_lit.runs import stored
from partcraft_lit.runs.settings import TrainSettings

#: What does not change the numbers of the trained model.
_NOT_HASHED = (
    "eval.enabled",
    "eval.untrained",
    "eval.hybrids",
    "eval.pictures",  # more numbers about the same images
    "eval.judge",
    "eval.judge_pairs",
    "eval.neighbours",
    "sample.batch_size",
)


def check(values: Mapping[str, Any]) -> TrainSettings:
    verify = validate(values["verify"], bool, "verify")
    layers = validate(values["layers"], bool, "layers")
    validate(values["layer_images"], Positive, "layer_images")
    validate(values["layer_words"], bool, "layer_words")
    if verify and layers:
        raise UserError("verify=true and layers=true are two things that this verb does: give one of them.")
    settings = factories.settings_of(TrainSettings, _values_of(values))
    for name in settings.eval.pictures:
        targets.choose(values["metrics"], name, "eval.pictures")
    factories.check_judges({**_values_of(values), "eval": {"judge": list(settings.eval.judge)}})
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    folder = evaluation_folder(runs.run_of(values), values)
    return folder, f"Scores go to {folder}"


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    trained = _values_of(values)
    if values["verify"]:
        return verify_run(trained, folder, runs.run_of(values))

    given: dict[str, Any] = {
        "run_folder": runs.run_of(values),
        "source": factories.make_source(trained),
        "load_backbone": factories.backbone_loader(trained),
        "load_features": factories.features_loader(trained),
    }
    if values["layers"]:
        from partcraft_lit.commands.evaluate.layers import rank

        return rank(settings, folder, values["layer_images"], values["layer_words"], **given)
    given |= {
        "load_image_features": factories.image_features_loader(trained),
        "load_judges": factories.judges_loader(trained),
    }
    _start_processes(values["trainer"])
    from partcraft_lit.commands.evaluate.evaluate import evaluate

    return evaluate(settings, folder, **given)


def verify_run(trained: Mapping[str, Any], folder: Path, run_folder: Path) -> int:
    """Verifies the evaluation in ``folder`` with the networks that have scored it; see ``evaluate.verify``.

    Args:
        trained: the run's configuration, with the ``eval`` and ``sample`` of the evaluation.
        folder: of the evaluation.
        run_folder: of the run.
    """
    from partcraft_lit.commands.evaluate.evaluate import verify
    from partcraft_lit.evaluation.image_scores import read_networks

    networks = read_networks(folder)
    if networks is not None:
        trained = {**trained, "eval": {**trained["eval"], "pictures": networks}}
    return verify(
        factories.settings_of(TrainSettings, trained),
        folder,
        run_folder=run_folder,
        source=factories.make_source(trained),
        load_backbone=factories.backbone_loader(trained),
        load_features=factories.features_loader(trained),
        load_image_features=factories.image_features_loader(trained),
    )


def _start_processes(trainer: Mapping[str, Any]) -> None:
    """One process for each device of the trainer, if it has several: Lightning starts the others with this command."""
    if environment.trainer_processes(trainer) * int(trainer["num_nodes"]) < 2:
        return
    from lightning.fabric import Fabric

    strategy = "ddp" if trainer["strategy"] == "auto" else trainer["strategy"]
    given = {key: trainer[key] for key in ("accelerator", "devices", "num_nodes")}
    Fabric(strategy=strategy, **given).launch()


def evaluation_folder(run_folder: Path, chosen: Mapping[str, Any]) -> Path:
    """``evaluation`` of the run for its own settings, a folder inside it for others: both can stand.

    Args:
        run_folder: of the run.
        chosen: has ``eval`` and ``sample``, where null is as in the run.
    """
    own = stored.values_of_run(run_folder, trust=bool(chosen.get("trust")))
    digest = scoring_hash(_merged(own, chosen))
    return run_folder / "evaluation" if digest == scoring_hash(own) else run_folder / "evaluation" / digest


def scoring_hash(values: Mapping[str, Any]) -> str:
    """Of the settings that decide which images are drawn and how."""
    return rundir.settings_hash({key: values[key] for key in ("eval", "sample")}, _NOT_HASHED)


def chosen_keys(group: str) -> list[str]:
    """Keys of ``eval`` or ``sample`` that this verb knows."""
    return list(_defaults("evaluate", group))


def _values_of(values: Mapping[str, Any]) -> dict[str, Any]:
    """The run's own values, with what was chosen here in their place."""
    own = stored.values_of_run(runs.run_of(values), trust=values["trust"])
    tables = {group: _table(group, own.get(group, {}), values[group]) for group in ("metrics", "judges")}
    return {**_merged(own, values), "trainer": values["trainer"], **tables}


def _table(group: str, own: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Of networks or judges: a row that was not touched here is as in the run, as far as that is still understood."""
    untouched = _defaults("evaluate", group)
    return {
        name: own[name] if node == untouched.get(name) and own.get(name, {}).keys() == node.keys() else node
        for name, node in chosen.items()
    }


@functools.cache
def _defaults(verb: str, group: str) -> dict[str, Any]:
    values: dict[str, Any] = config.plain(config.compose(verb))[group]
    return values


def _merged(own: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: {k: v for k, v in chosen[key].items() if v is not None} for key in ("eval", "sample")}
    return {**own, **{key: {**own[key], **given[key]} for key in given}}
