"""``partcraft export``: the parts and the adapter of a run as files for other tools."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.backbones.pipelines import pipeline_name
from partcraft_lit.commands.export.hub import check_push, push
from partcraft_lit.commands.export.publish import MANIFEST, check_output, publish
from partcraft_lit.commands.export.settings import ExportSettings
from partcraft_lit.commands.train import runs
from partcraft_lit.config import factories
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages
from partcraft_lit.runs import stored
from partcraft_lit.runs.settings import TrainSettings

#: End of the name of the hidden folder beside the output in which an export is made.
_PARTIAL = ".partial"


def check(values: Mapping[str, Any]) -> ExportSettings:
    runs.run_of(values)
    if isinstance(values["chosen"], str):
        raise UserError(f"parts={values['chosen']}: wanted a list, such as parts=[{values['chosen']}].")
    settings = factories.settings_of(ExportSettings, {key: value for key, value in values.items() if key != "paths"})
    if not settings.to:
        raise UserError("to=[] names no tool; wanted some of diffusers, a1111, comfyui.")
    _check_name(settings.name)
    if settings.output_dir is not None:
        check_output(settings.output_dir)
    if settings.push is not None:
        check_push(settings.push)
        if settings.public and not settings.data_license and not factories.is_drawn(_trained_values(values)):
            raise UserError(
                "public=true shows the export to everybody, and nothing says under which licence the training images "
                "are: data_license='CC BY 4.0', for instance, if you have the right to share what was made of them."
            )
    elif settings.public:
        raise UserError("public=true is about the repository of push=OWNER/NAME; give that too.")
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    """A hidden folder beside the output: that appears when it is whole, and holds nothing but the export."""
    output = runs.folder_in_run(values, "export")
    return output.with_name(f".{output.name}{_PARTIAL}"), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    run_folder = runs.run_of(values)
    trained = _trained_values(values)
    settings_of_run = factories.settings_of(TrainSettings, trained)
    needs_code = _needs_code(settings, settings_of_run, trained)
    made, output = folder / "files", _output(settings, folder)
    shutil.rmtree(made, ignore_errors=True)  # of an export that was interrupted

    load_backbone = factories.backbone_loader({**trained, "trainer": values["trainer"]})
    if needs_code:
        from partcraft_lit.commands.export.prompt_embeds import export_prompt_embeds

        manifest = export_prompt_embeds(
            settings, made, run_folder=run_folder, trained=settings_of_run, load_backbone=load_backbone
        )
    else:
        from partcraft_lit.commands.export.bundle import Origin
        from partcraft_lit.commands.export.export import export

        manifest = export(
            settings,
            made,
            run_folder=run_folder,
            trained=settings_of_run,
            load_backbone=load_backbone,
            origin=Origin(**_origin(trained)),
        )
    publish(made, output)
    if settings.push is not None:
        address = push(
            output, [*manifest["files"], MANIFEST], settings.push, settings.public, f"Export {manifest['name']}"
        )
        Stages().log(f"Hub: {address}")
    if folder.name.endswith(_PARTIAL):
        shutil.rmtree(folder)
    Stages().log(f"Export: {output}")
    return manifest


def _trained_values(values: Mapping[str, Any]) -> dict[str, Any]:
    return stored.values_of_run(runs.run_of(values), trust=values["trust"])


def _output(settings: ExportSettings, folder: Path) -> Path:
    if settings.output_dir is not None:
        return settings.output_dir
    # Made by choose_folder, unless hydra.run.dir named a folder.
    return folder.with_name(folder.name[1 : -len(_PARTIAL)]) if folder.name.endswith(_PARTIAL) else folder / "export"


def _origin(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run's model and images came from, without a path of this machine."""
    model, is_public = stored.base_model(trained)
    return {
        "model": model,
        "model_is_public": is_public,
        "model_is_packaged": not model,
        "data_is_drawn": factories.is_drawn(trained),
    }


def _needs_code(settings: ExportSettings, trained: TrainSettings, values: Mapping[str, Any]) -> bool:
    """Whether the run's part vectors are not embeddings that tools load: diffusers takes them by a few lines of code.

    Raises:
        UserError: if other tools are asked for too.
    """
    after = trained.method.tokens.inject == "after"
    if not after and factories.reads_clip(values["backbone"]):
        return False
    kind = factories.backbone_class(values["backbone"])
    if kind is not None:
        pipeline_name(kind)  # refuses before anything is loaded
    able = ["diffusers", *(["comfyui"] if hasattr(kind, "comfyui_key") else [])]
    others = [tool for tool in settings.to if tool not in able]
    if others:
        reason = (
            "puts its part vectors behind the text encoder (method.tokens.inject=after), and they put embeddings in "
            "front of it"
            if after
            else "has a text encoder that is not CLIP, and they read embeddings for CLIP alone"
        )
        raise UserError(
            f"{' and '.join(others)} cannot draw with this run: it {reason}. to=[{','.join(able)}] writes the vectors, "
            "the LoRA and the code that gives them to each of these."
        )
    return True


def _check_name(name: str | None) -> None:
    if name is not None and (not name or not all(sign.isalnum() or sign in "-_" for sign in name)):
        raise UserError(f"name={name!r}: file names begin with it, so it is letters, digits, '-' and '_', no spaces.")
