"""What a run folder says of its run: the configuration, completed, and the report of its discovery."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.config import compose as config
from partcraft_lit.config import stored
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.runs.settings import TrainSettings


def values_of_run(folder: Path, *, trust: bool = False) -> dict[str, Any]:
    """The configuration with which a run was started; a setting that is newer than the run is as it is by default.

    Args:
        folder: of the run.
        trust: whether classes that are not of this package are made from it.
    """
    own = rundir.with_younger(stored.load(folder / ".hydra" / "config.yaml", trust=trust))
    groups = {field.name for field in dataclasses.fields(TrainSettings)} - {"method"}
    return _completed(own, {key: value for key, value in _train_defaults().items() if key in groups})


def base_model(values: Mapping[str, Any]) -> tuple[str, bool]:
    """Hub id of a run's base model, else the name of its folder or file, "" for the miniature; whether it is an id.

    The miniature's other weights in the package have the name that they have there.
    """
    backbone = values["backbone"]
    packaged = backbone.get("packaged", "mini")
    source = str(backbone.get("source") or backbone.get("path") or ("" if packaged == "mini" else packaged))
    is_local = Path(source).expanduser().exists() or source.count("/") != 1
    return Path(source).name if is_local else source, bool(source) and not is_local


def discovery_metadata(folder: Path) -> dict[str, Any]:
    """The content of a run's ``parts/discovery.json``.

    Raises:
        UserError: if it is missing or damaged.
    """
    path = folder / "parts" / "discovery.json"
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); train the run again.") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("parts"), list) or not metadata["parts"]:
        raise UserError(f"{path} says nothing of parts; train the run again.")
    return metadata


@functools.cache
def _train_defaults() -> dict[str, Any]:
    return config.plain(config.compose("train"))


def _completed(own: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``own`` with what it lacks."""
    filled = dict(own)
    for key, default in defaults.items():
        if key not in own:
            filled[key] = default
        elif isinstance(default, Mapping) and isinstance(own[key], Mapping) and "_target_" not in own[key]:
            filled[key] = _completed(own[key], default)
    return filled
