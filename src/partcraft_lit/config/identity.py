"""How a run is called in dashboards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from partcraft_lit.core.rundir import NOT_HASHED
from partcraft_lit.loggers.identity import GROUP_VARIABLE, RunIdentity
from partcraft_lit.scheduling.results import SWEEP_VARIABLE

#: Groups whose choice labels a run.
_TAGS = ("dataset", "method", "backbone")
#: Beside the settings that do not change what is trained: what a name need not say, or says anyway.
_NOT_NAMED = (*NOT_HASHED, "experiment", *_TAGS, "trainer", "hydra", "trust")


def run_identity(values: Mapping[str, Any], folder: Path) -> RunIdentity:
    """Name, group and labels of a command from what was chosen and overridden.

    Args:
        values: its configuration.
        folder: where it works.
    """
    if not HydraConfig.initialized():
        return RunIdentity(folder.name)
    hydra = HydraConfig.get()
    choices = hydra.runtime.choices
    tags = tuple(choice for group in _TAGS if isinstance(choice := choices.get(group), str))
    group = os.environ.get(GROUP_VARIABLE)
    if hydra.job.name == "table":
        return RunIdentity(str(values["table"]["name"]), group, "table", tags)
    overrides, sweep = list(hydra.overrides.task), None
    if hydra.mode == RunMode.MULTIRUN:
        sweep = Path(hydra.sweep.dir)
    elif SWEEP_VARIABLE in os.environ:  # a job of a sweep, in a process of its own
        sweep = Path(os.environ[SWEEP_VARIABLE])
    if sweep is not None:
        group = group or f"sweep {sweep.name}"
    title = [experiment] if isinstance(experiment := choices.get("experiment"), str) else tags[:2]
    return RunIdentity(" ".join([*title, *_differences(overrides, sweep)]), group, hydra.job.name, tags)


def _differences(overrides: Sequence[str], sweep: Path | None) -> Iterator[str]:
    """Overrides that tell the run from others: those a sweep varies, or all that decide what is trained."""
    swept = None if sweep is None else _swept_keys(sweep)
    for text in overrides:
        key = text.lstrip("+~").partition("=")[0]
        if swept is None:
            shown = not any(key == name or key.startswith(f"{name}.") for name in _NOT_NAMED)
        else:
            shown = key in swept
        if shown:
            yield text


def _swept_keys(sweep: Path) -> set[str] | None:
    """Keys with several values in a sweep; None where the sweep has not written them down."""
    try:
        written = list(OmegaConf.load(sweep / "multirun.yaml").hydra.overrides.task)
    except (OSError, OmegaConfBaseException, AttributeError):
        return None
    parsed = OverridesParser.create().parse_overrides(written)
    return {override.key_or_group for override in parsed if override.is_sweep_override()}
