"""``partcraft doctor``: what a training run lacks here, and what it would cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands import train
from partcraft_lit.commands.doctor.settings import DoctorSettings
from partcraft_lit.config import factories
from partcraft_lit.config.validation import validate
from partcraft_lit.core import rundir
from partcraft_lit.runs.settings import TrainSettings


def check(values: Mapping[str, Any]) -> tuple[TrainSettings, DoctorSettings]:
    run = {key: value for key, value in values.items() if key != "doctor"}
    return train.check(run), validate(values["doctor"], DoctorSettings, "doctor")


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    root = Path(values["paths"]["logs"]).expanduser() / "doctor" / "runs"
    return rundir.new_folder(root, rundir.settings_hash(values)), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings, doctor = check(values)
    factories.trainer_maker(values)  # what Lightning refuses is a mistake like those that ``check`` finds

    from partcraft_lit.commands.doctor.examine import examine

    result = examine(
        settings,
        doctor,
        make_source=lambda: factories.make_source(values),
        load_backbone=factories.backbone_loader(values),
        load_features=factories.features_loader(values),
        attention_loss=factories.make_attention_loss(values, settings.loss),
        trainer=values["trainer"],
        wandb_mode=((values["logger"] or {}).get("wandb") or {}).get("mode"),
    )
    rundir.mark_finished(folder)
    return result
