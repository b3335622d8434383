"""``partcraft generate``: images from a run and a prompt."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.generate.settings import GenerateSettings
from partcraft_lit.commands.train import runs
from partcraft_lit.config import factories
from partcraft_lit.core.errors import UserError
from partcraft_lit.runs import stored


def check(values: Mapping[str, Any]) -> GenerateSettings:
    runs.run_of(values)
    settings = factories.settings_of(GenerateSettings, {key: value for key, value in values.items() if key != "paths"})
    if (settings.prompt is None) == (settings.prompts_file is None):
        raise UserError(
            "Give either a prompt, 'prompt=a photo of a <head:3> bird', or a text file with one per line, "
            "prompts_file=PATH."
        )
    if settings.prompt is not None and not settings.prompt.strip():
        raise UserError("prompt='' asks for nothing: write what to draw, 'prompt=a photo of a <head:3> bird'.")
    if settings.prompts_file is not None and not settings.prompts_file.is_file():
        what = "is a folder" if settings.prompts_file.is_dir() else "there is no such file"
        raise UserError(
            f"prompts_file={settings.prompts_file}: {what}; wanted is a text file with one prompt per line."
        )
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    return runs.folder_in_run(values, "generated"), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    run_folder = runs.run_of(values)
    trained = stored.values_of_run(run_folder, trust=values["trust"])

    from partcraft_lit.commands.generate.generate import generate
    from partcraft_lit.composer.run import Run

    return generate(settings, folder, Run(run_folder, {**trained, "trainer": values["trainer"]}))
