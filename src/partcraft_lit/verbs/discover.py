"""``partcraft discover``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit import environment, rundir
from partcraft_lit.settings import DiscoverSettings
from partcraft_lit.verbs import wiring


def check(values: Mapping[str, Any]) -> DiscoverSettings:
    wiring.check_choices(values)
    return wiring.settings_of(DiscoverSettings, values)


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    root = Path(values["paths"]["logs"]).expanduser() / "discover" / "runs"
    folder = rundir.new_folder(root, rundir.settings_hash(values))
    return folder, f"Run folder: {folder}"


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    environment.write(folder)

    from partcraft_lit.run import discover

    result = discover(settings, folder, source=wiring.make_source(values), load_features=wiring.features_loader(values))
    rundir.mark_finished(folder)
    return result
