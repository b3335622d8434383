"""``partcraft store``: statistics, verification and pruning of the cache that all runs share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.store.settings import StoreSettings
from partcraft_lit.config import factories
from partcraft_lit.core import rundir


def check(values: Mapping[str, Any]) -> StoreSettings:
    return factories.settings_of(StoreSettings, values)


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    root = Path(values["paths"]["logs"]).expanduser() / "store" / "runs"
    return rundir.new_folder(root, rundir.settings_hash(values)), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)

    from partcraft_lit.commands.store.store import maintain_store

    result = maintain_store(settings)
    rundir.mark_finished(folder)
    return result
