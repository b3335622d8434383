"""``partcraft export``: the parts and the adapter of a run as files for other tools."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.export.settings import ExportSettings
from partcraft_lit.commands.train import runs
from partcraft_lit.commands.train.settings import TrainSettings
from partcraft_lit.config import factories
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError

#: The list of what an export wrote; by it the folder of an earlier export is known.
MANIFEST = "export.json"
#: What the command line itself puts into a folder.
_OWN = ("run.log", rundir.LOCK)


def check(values: Mapping[str, Any]) -> ExportSettings:
    runs.run_of(values)
    if isinstance(values["chosen"], str):
        raise UserError(f"parts={values['chosen']}: wanted a list, such as parts=[{values['chosen']}].")
    settings = factories.settings_of(ExportSettings, {key: value for key, value in values.items() if key != "paths"})
    if not settings.to:
        raise UserError("to=[] names no tool; wanted some of diffusers, a1111, comfyui.")
    _check_name(settings.name)
    _check_output(settings.output_dir)
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    return runs.folder_in_run(values, "export"), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    run_folder = runs.run_of(values)
    trained = runs.values_of_run(run_folder)

    from partcraft_lit.commands.export.bundle import Origin
    from partcraft_lit.commands.export.export import export

    return export(
        settings,
        folder,
        run_folder=run_folder,
        trained=factories.settings_of(TrainSettings, trained),
        load_backbone=factories.backbone_loader({**trained, "trainer": values["trainer"]}),
        origin=Origin(**_origin(trained)),
    )


def _origin(trained: Mapping[str, Any]) -> dict[str, Any]:
    """Where a run's model and pictures came from, without a path of this machine."""
    backbone = trained["backbone"]
    source = str(backbone.get("source") or backbone.get("path") or "")
    is_local = Path(source).expanduser().exists() or source.count("/") != 1
    return {
        "model": Path(source).name if is_local else source,
        "model_is_public": bool(source) and not is_local,
        "model_is_packaged": not source,
        "data_is_drawn": factories.is_drawn(trained),
    }


def _check_name(name: str | None) -> None:
    if name is not None and (not name or not all(sign.isalnum() or sign in "-_" for sign in name)):
        raise UserError(f"name={name!r}: file names begin with it, so it is letters, digits, '-' and '_', no spaces.")


def _check_output(folder: Path | None) -> None:
    """Raises a UserError for a folder that holds anything but an earlier export."""
    if folder is None or not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"output_dir={folder} is a file; give a folder.")
    present = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    foreign = {path for path in present - _written_before(folder) if not path.startswith(".") and path not in _OWN}
    if foreign:
        raise UserError(
            f"output_dir={folder} holds files that no export wrote, for instance {min(foreign)!r}; nothing is "
            f"overwritten. Give another path, or an empty folder."
        )


def _written_before(folder: Path) -> set[str]:
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return {MANIFEST, *map(str, files)}
    except (OSError, ValueError, KeyError, TypeError):
        return set()
