"""The Train screen: images, their parts, and a training run, as the command line would start them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from partcraft_lit.commands.app.jobs import Job, Jobs
from partcraft_lit.commands.app.shelf import COMPOSING
from partcraft_lit.config import compose as config
from partcraft_lit.config.cmdline import quoted
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import readable_extensions
from partcraft_lit.core.part_names import check_part_names

#: Folders that are offered, and levels below ``app.folders`` that are looked through.
_OFFERED, _LEVELS = 60, 3
#: Entries of a folder that are looked at.
_LOOKED_AT = 400


class TrainRequest(BaseModel):
    """What the form says; 0 or "" leaves a setting as it is."""

    model_config = ConfigDict(extra="forbid")
    data: Literal["zoo", "folder"]
    folder: Annotated[str, Field(max_length=1000)] = ""
    noun: Annotated[str, Field(max_length=40, pattern=r"^[\w -]*$")] = ""
    parts: Annotated[int, Field(ge=0, le=50)] = 0
    kinds: Annotated[int, Field(ge=0, le=1000)] = 0
    names: Annotated[str, Field(max_length=500)] = ""
    model: Literal["mini", "sd15"] = "mini"
    steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    images: Annotated[int, Field(ge=0, le=1000)] = 0
    quick: bool = False


class Trainer:
    """Starts discoveries and trainings.

    Args:
        jobs: where they are kept.
        logs: root of the run folders.
        folders: images are looked for below these alone.
    """

    def __init__(self, jobs: Jobs, logs: Path, folders: Sequence[Path]) -> None:
        self.jobs = jobs
        self.logs = logs
        self.folders = [folder.resolve() for folder in folders]

    def start(self, verb: Literal["discover", "train"], values: dict[str, Any]) -> Job:
        """Checks everything that can be checked before the process starts.

        Raises:
            UserError: for a mistake, as the command line would say it.
        """
        import importlib

        request = TrainRequest.model_validate(values)
        overrides = [*self.overrides(request, verb), quoted("paths.logs", str(self.logs.resolve()))]
        with COMPOSING:
            composed = config.plain(config.compose(verb, overrides))
            importlib.import_module(f"partcraft_lit.commands.{verb}").check(composed)
        root = self.logs / verb / "runs"
        folder = rundir.new_folder(root, rundir.settings_hash(composed)).resolve()
        overrides.append(quoted("hydra.run.dir", str(folder)))
        what = "the drawn birds" if request.data == "zoo" else Path(request.folder).name
        title = f"{'Parts of' if verb == 'discover' else 'Training on'} {what}"
        steps = int(composed["trainer"]["max_steps"]) if verb == "train" else 0
        return self.jobs.start(verb, title, overrides, folder, max_steps=steps, about={"form": request.model_dump()})

    def overrides(self, request: TrainRequest, verb: str) -> list[str]:
        """As one would write them on the command line."""
        given = [f"dataset={'creatures' if request.data == 'zoo' else 'folder'}"]
        if request.data == "folder":
            given.append(quoted("dataset.dir", str(self._folder(request.folder))))
            if request.noun.strip():
                given.append(quoted("dataset.class_noun", request.noun.strip()))
            if request.images:
                given.append(f"dataset.per_class={request.images}")
        elif request.images:
            given.append(f"dataset.images_per_species={request.images}")
        if request.parts:
            given.append(f"parts.M={request.parts}")
        if request.kinds:
            given.append(f"parts.K={request.kinds}")
        names = request.names.replace(",", " ").split()
        if names:
            check_part_names(names)
            given.append(f"parts.names=[{','.join(names)}]")
        elif request.data == "zoo" and request.parts not in (0, 5):
            given.append("parts.names=[]")
        if verb == "train":
            given += ["logger=none", *self._training(request)]
        elif request.data == "folder" and request.model == "mini":
            given.append("parts.features=efficientnet_lite0")
        return given

    def _training(self, request: TrainRequest) -> list[str]:
        given = []
        if request.data == "folder":
            given.append(f"backbone={request.model}")
            if request.model == "mini":
                given.append("parts.features=efficientnet_lite0")
        if request.steps:
            given.append(f"trainer.max_steps={request.steps}")
        if request.quick:
            given += ["eval.enabled=false", "eval.hybrids=1"]
        return given

    def _folder(self, text: str) -> Path:
        """A folder of images that may be read.

        Raises:
            UserError: if it is none, or outside of ``app.folders``.
        """
        if not text.strip():
            raise UserError("Name the folder with your images.")
        given = Path(text.strip()).expanduser()
        for root in self.folders:
            folder = (given if given.is_absolute() else root / given).resolve()
            if any(folder.is_relative_to(allowed) for allowed in self.folders):
                if folder.is_dir():
                    return folder
                raise UserError(f"{text}: there is no such folder.")
        allowed = ", ".join(map(str, self.folders))
        raise UserError(f"{text} is outside of the folders that this app may read: {allowed}. See app.folders.")

    def offered(self) -> list[str]:
        """Folders that hold images, as the form suggests them."""
        found: list[str] = []
        endings = readable_extensions()
        waiting = [(root, root, 0) for root in self.folders]
        while waiting and len(found) < _OFFERED:
            root, folder, level = waiting.pop(0)
            try:
                entries = sorted(folder.iterdir())[:_LOOKED_AT]
            except OSError:
                continue
            inner = [entry for entry in entries if entry.is_dir() and not entry.name.startswith((".", "_"))]
            shows = any(entry.suffix.lower() in endings for entry in entries)
            if level and (shows or any(_has_image(entry, endings) for entry in inner[:5])):
                found.append(str(folder.relative_to(root)))
            elif level < _LEVELS:
                waiting += [(root, entry, level + 1) for entry in inner if entry.name not in _NO_DATA]
        return found


#: Folders of a checkout that hold no data sets.
_NO_DATA = frozenset({"logs", "site", "node_modules", "docs", "experiments", "tests", "src", "benchmarks", "tools"})


def _has_image(folder: Path, endings: frozenset[str]) -> bool:
    try:
        return any(entry.suffix.lower() in endings for entry in list(folder.iterdir())[:20])
    except OSError:
        return False
