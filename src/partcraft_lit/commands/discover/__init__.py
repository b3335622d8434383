"""``partcraft discover``: finds the parts of a data set, or applies corrections to those of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from partcraft_lit.config import factories
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.runs.corrections import corrections_of, with_corrections
from partcraft_lit.runs.settings import DiscoverSettings
from partcraft_lit.runs.stored import values_of_run


def check(values: Mapping[str, Any]) -> DiscoverSettings:
    factories.check_choices(values)
    return factories.settings_of(DiscoverSettings, values)


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    if values["run"] is not None:
        return rundir.new_folder(_run_of(values) / "corrected"), ""
    root = Path(values["paths"]["logs"]).expanduser() / "discover" / "runs"
    folder = rundir.new_folder(root, rundir.settings_hash(with_corrections(_without_run(values))))
    return folder, f"Run folder: {folder}"


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    if values["run"] is not None:
        return _correct(values)
    if environment.is_first_process():
        environment.write(folder)
    corrections = corrections_of(values, folder, None)

    from partcraft_lit.commands.discover.discover import discover

    result = discover(
        settings,
        folder,
        source=factories.make_source(values),
        load_features=factories.features_loader(values),
        corrections=corrections,
    )
    if environment.is_first_process():
        rundir.mark_finished(folder)
    return result


def _correct(values: Mapping[str, Any]) -> Any:
    """Applies the ``parts.yaml`` of a run to it; images and features are those of the run."""
    run_folder = _run_of(values)
    own = values_of_run(run_folder, trust=values["trust"])

    from partcraft_lit.commands.discover.correct import correct

    with rundir.held(run_folder):
        return correct(
            factories.settings_of(DiscoverSettings, {key: own[key] for key in ("seed", "parts", "paths")}),
            run_folder,
            source=factories.make_source(own),
            load_features=factories.features_loader({**own, "trainer": values["trainer"]}),
        )


def _run_of(values: Mapping[str, Any]) -> Path:
    """A trained run, or one of ``partcraft discover``."""
    logs = Path(values["paths"]["logs"]).expanduser()
    discovered = logs / "discover" / "runs" / str(values["run"])
    if (discovered / ".hydra" / "config.yaml").is_file():
        return discovered.resolve()
    folder = rundir.find_run(str(values["run"]), logs / "train" / "runs")
    if not (folder / "parts" / "dictionary.json").is_file():
        raise UserError(f"run={values['run']}: this run has no parts yet; discover or train first.")
    return folder


def _without_run(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without keys that say nothing of a new discovery."""
    return {key: value for key, value in values.items() if key not in ("run", "trust")}
