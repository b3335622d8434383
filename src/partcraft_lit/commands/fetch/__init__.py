"""``partcraft fetch``: a published data set, downloaded or from a local archive."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.fetch.settings import FetchSettings
from partcraft_lit.config import factories, sources
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError


def check(values: Mapping[str, Any]) -> FetchSettings:
    if "download" not in values:
        known = sorted(
            path.stem
            for path in (sources.conf_dir() / "dataset").glob("*.yaml")
            if "\ndownload:" in path.read_text(encoding="utf-8")
        )
        raise UserError(f"This data set is nothing that can be fetched. Those that can: {', '.join(known)}.")
    # A data set's YAML also presets parts, which nothing here reads.
    settings = factories.settings_of(FetchSettings, {k: v for k, v in values.items() if k not in ("parts", "seed")})
    if settings.archive is not None and not settings.archive.exists():
        raise UserError(f"archive={settings.archive}: there is no such file or folder.")
    names = [archive.file for archive in settings.download.archives]
    folder = settings.archive if settings.archive is not None and settings.archive.is_dir() else None
    if folder is not None and not any((folder / name).is_file() for name in names):
        raise UserError(f"archive={settings.archive}: this folder holds none of {', '.join(names)}.")
    single = settings.archive is not None and settings.archive.is_file()
    if single and len(names) > 1 and settings.archive.name not in names:  # type: ignore[union-attr]
        raise UserError(
            f"archive={settings.archive}: {settings.download.name} consists of {', '.join(names)}; give one of these, "
            "or the folder that holds them."
        )
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    root = Path(values["paths"]["logs"]).expanduser() / "fetch" / "runs"
    return rundir.new_folder(root, rundir.settings_hash(values)), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)

    from partcraft_lit.commands.fetch.fetch import fetch

    result = fetch(settings, folder)
    rundir.mark_finished(folder)
    return result
