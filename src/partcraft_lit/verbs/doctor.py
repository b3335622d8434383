"""``partcraft doctor``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit import rundir
from partcraft_lit.settings import DoctorSettings, TrainSettings
from partcraft_lit.strict import build
from partcraft_lit.verbs import train, wiring


def check(values: Mapping[str, Any]) -> tuple[TrainSettings, DoctorSettings]:
    run = {key: value for key, value in values.items() if key != "doctor"}
    return train.check(run), build(DoctorSettings, values["doctor"], "doctor")


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    root = Path(values["paths"]["logs"]).expanduser() / "doctor" / "runs"
    return rundir.new_folder(root, rundir.settings_hash(values)), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings, doctor = check(values)
    wiring.trainer_maker(values)  # what Lightning refuses is a mistake like those that ``check`` finds

    from partcraft_lit.run.doctoring import examine

    result = examine(
        settings,
        doctor,
        make_source=lambda: wiring.make_source(values),
        load_backbone=wiring.backbone_loader(values),
        load_features=wiring.features_loader(values),
        make_attention_loss=wiring.attention_loss_maker(values, settings),
        trainer=values["trainer"],
        wants_wandb="wandb" in (values["logger"] or {}),
    )
    rundir.mark_finished(folder)
    return result
