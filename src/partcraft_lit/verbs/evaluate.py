"""``partcraft evaluate``: the scores of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from partcraft_lit import rundir
from partcraft_lit.settings import EvalSettings, SampleSettings, TrainSettings
from partcraft_lit.strict import build
from partcraft_lit.verbs import wiring


def check(values: Mapping[str, Any]) -> tuple[EvalSettings, SampleSettings]:
    _run_of(values)
    return build(EvalSettings, values["eval"], "eval"), build(SampleSettings, values["sample"], "sample")


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    folder = _run_of(values) / "evaluation" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    return folder, f"Scores go to {folder}"


def main(values: Mapping[str, Any], folder: Path) -> Any:
    evaluation, sample = check(values)
    run_folder = _run_of(values)
    trained = {**wiring.values_of_run(run_folder), "trainer": values["trainer"]}
    settings = dataclasses.replace(wiring.settings_of(TrainSettings, trained), eval=evaluation, sample=sample)

    from partcraft_lit.run import evaluate

    return evaluate(
        settings,
        folder,
        run_folder=run_folder,
        source=wiring.make_source(trained),
        load_backbone=wiring.backbone_loader(trained),
        load_features=wiring.features_loader(trained),
    )


def _run_of(values: Mapping[str, Any]) -> Path:
    return rundir.find_run(str(values["run"]), Path(values["paths"]["logs"]).expanduser() / "train" / "runs")
