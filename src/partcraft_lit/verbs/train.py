"""``partcraft train``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit import config, environment, rundir
from partcraft_lit.settings import TrainSettings
from partcraft_lit.verbs import wiring


def check(values: Mapping[str, Any]) -> TrainSettings:
    wiring.check_choices(values)
    wiring.check_ckpt_path(values)
    return wiring.settings_of(TrainSettings, values)


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    return wiring.choose_run_folder("train", values)


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    environment.write(folder)

    from partcraft_lit.run import train

    scores = train(
        settings,
        folder,
        source=wiring.make_source(values),
        load_backbone=wiring.backbone_loader(values),
        load_features=wiring.features_loader(values),
        make_trainer=config.later(values["trainer"], "trainer"),
        loggers=wiring.make_loggers(values, folder),
        callbacks=wiring.callback_makers(values),
        make_attention_loss=wiring.attention_loss_maker(values, settings),
        resume_from=wiring.resume_from(values, folder),
        config=dict(values),
    )
    rundir.mark_finished(folder)
    return scores
