"""The Give away screen: exports of a run as files for other tools."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from partcraft_lit.commands import export as export_command
from partcraft_lit.commands.app.jobs import Job, Jobs
from partcraft_lit.commands.app.shelf import COMPOSING
from partcraft_lit.config import compose as config
from partcraft_lit.config.cmdline import quoted
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_path

_TOOLS = {"diffusers": "diffusers", "a1111": "Stable Diffusion web UI", "comfyui": "ComfyUI"}


class GiveRequest(BaseModel):
    """What to export; no choices mean all that was trained."""

    model_config = ConfigDict(extra="forbid")
    choices: Annotated[list[tuple[int, int]], Field(max_length=2000)] = []
    to: Annotated[list[Literal["diffusers", "a1111", "comfyui"]], Field(min_length=1, max_length=3)]
    name: Annotated[str, Field(max_length=40)] = ""
    number_format: Literal["float32", "float16"] = "float16"
    data_license: Annotated[str, Field(max_length=100)] = ""
    push: Annotated[str, Field(max_length=100)] = ""
    public: bool = False


def start(jobs: Jobs, logs: Path, run_folder: Path, part_names: list[str], values: dict[str, Any]) -> Job:
    """Starts ``partcraft export``.

    Raises:
        UserError: for a mistake, as the command line would say it.
    """
    request = GiveRequest.model_validate(values)
    overrides = [
        quoted("run", str(run_folder)),
        f"to=[{','.join(request.to)}]",
        f"number_format={request.number_format}",
        quoted("paths.logs", str(logs.resolve())),
    ]
    if request.choices:
        for part, _ in request.choices:
            if not 0 <= part < len(part_names):
                raise UserError(f"There is no part {part}.")
        chosen = ",".join(f"'{part_names[part]}:{code}'" for part, code in request.choices)
        overrides.append(f"chosen=[{chosen}]")
    if request.name.strip():
        overrides.append(quoted("name", request.name.strip()))
    if request.data_license.strip():
        overrides.append(quoted("data_license", request.data_license.strip()))
    if request.push.strip():
        overrides += [quoted("push", request.push.strip()), f"public={str(request.public).lower()}"]
    folder = rundir.new_folder(run_folder / "export").resolve()
    folder.rmdir()  # the command makes it when it is whole
    overrides.append(quoted("output_dir", str(folder)))
    with COMPOSING:
        export_command.check(config.plain(config.compose("export", overrides)))
    return jobs.start("export", f"Files of {run_folder.name}", overrides, folder, about={"run": run_folder.name})


def result(job: Job) -> dict[str, Any]:
    """Files of an export that is done, and what was checked."""
    folder = Path(job.folder)
    files = [
        {"name": str(path.relative_to(folder)), "bytes": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
    ]
    try:
        manifest = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError("This export is incomplete; make it again.") from error
    checked = [
        f"{_TOOLS.get(tool, tool)} draws the same image, within {found['image']:.2f} of 255 grey levels"
        for tool, found in manifest["checks"].items()
        if found["ok"] and found.get("image") is not None
    ]
    return {"files": files, "checked": checked}


def zipped(job: Job, place: Path) -> Path:
    """The export as one file."""
    folder, path = Path(job.folder), place / "export.zip"
    if not (folder / "export.json").is_file():
        raise UserError("This export is incomplete; make it again.")
    if not path.is_file():
        with atomic_path(path) as made, zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file() and not file.is_symlink():
                    archive.write(file, f"{folder.parent.parent.name}/{file.relative_to(folder)}")
    return path
