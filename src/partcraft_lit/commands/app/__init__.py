"""``partcraft app``: the composer in the browser."""

from __future__ import annotations

import importlib.util
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.commands.app.settings import AppSettings, ServerSettings
from partcraft_lit.config import factories
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError


def check(values: Mapping[str, Any]) -> AppSettings:
    settings = factories.settings_of(AppSettings, {key: value for key, value in values.items() if key != "paths"})
    _check_access(settings.app)
    for folder in settings.app.folders:
        if not folder.is_dir():
            raise UserError(f"app.folders: {folder} is not a folder.")
    _run(settings.run, _logs(values))
    if importlib.util.find_spec("gradio") is None:
        raise UserError(
            "The app needs gradio: pip install 'partcraft-lit[app]', or make env APP=1 in a checkout of this project."
        )
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    """Where uploads and drawn images are kept."""
    return rundir.new_folder(_logs(values) / "app"), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)

    from partcraft_lit.commands.app.server import serve

    serve(settings.app, folder, logs=_logs(values), first=_run(settings.run, _logs(values)))


def _logs(values: Mapping[str, Any]) -> Path:
    return Path(values["paths"]["logs"]).expanduser()


def _run(run: str, logs: Path) -> Path | None:
    """Folder of the run or bundle that is opened first; None if there is none yet: one can be trained in the app.

    Raises:
        UserError: for one that was named and is not there.
    """
    root = logs / "train" / "runs"
    if run == "latest" and not any(root.glob("*/.hydra/config.yaml")):
        return None
    given = Path(run).expanduser()
    if (given / "export.json").is_file():
        return given.resolve()
    return rundir.find_run(run, root)


def _check_access(settings: ServerSettings) -> None:
    if settings.password is not None and len(settings.password) < 8:
        raise UserError("app.password: wanted at least 8 characters; whoever has it may train and export here.")
    if settings.public or settings.password is not None or _is_loopback(settings.host):
        return
    raise UserError(
        f"app.host={settings.host} can be reached from other computers, so a password is needed: set the environment "
        "variable PARTCRAFT_APP_PASSWORD, or app.password. (app.public=true serves everybody, without training, "
        "corrections and exports.)"
    )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
