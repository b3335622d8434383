"""``partcraft discover``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.discover.settings import DiscoverSettings
from partcraft_lit.config import factories
from partcraft_lit.core import environment, rundir


def check(values: Mapping[str, Any]) -> DiscoverSettings:
    factories.check_choices(values)
    return factories.settings_of(DiscoverSettings, values)


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    root = Path(values["paths"]["logs"]).expanduser() / "discover" / "runs"
    folder = rundir.new_folder(root, rundir.settings_hash(values))
    return folder, f"Run folder: {folder}"


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    environment.write(folder)

    from partcraft_lit.commands.discover.discover import discover

    result = discover(
        settings, folder, source=factories.make_source(values), load_features=factories.features_loader(values)
    )
    rundir.mark_finished(folder)
    return result
