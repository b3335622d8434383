"""Where a command takes corrections of parts from, and what they are in the hash of its settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partcraft_lit.core.errors import UserError

if TYPE_CHECKING:
    from partcraft_lit.parts.corrected_discovery import CorrectionSources


def with_corrections(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with a hash of what corrects the parts, if anything does: it decides what is trained.

    Raises:
        UserError: if ``parts.corrections`` names something that is not there.
    """
    if "parts" not in values:  # of a command that has none, as pretrain
        return dict(values)
    given, folder = values["parts"]["corrections"], dataset_folder(values)
    if given is None or (given == "auto" and not (folder is not None and (folder / "parts.yaml").is_file())):
        return dict(values)
    from partcraft_lit.parts.corrections_file import find_file

    file = find_file(given, folder)
    digest = given if file is None else file.digest
    return {**values, "parts": {**values["parts"], "corrections": digest}}


def corrections_of(values: Mapping[str, Any], folder: Path, resume_from: Path | None) -> CorrectionSources:
    """Corrections of a command that works in ``folder``, and the run whose dictionary it keeps.

    Args:
        values: of the command.
        folder: of the run.
        resume_from: checkpoint that it continues, if it does.

    Raises:
        UserError: as ``CorrectionSources.find``, or for corrections of parts that are not discovered.
    """
    from partcraft_lit.parts.corrected_discovery import CorrectionSources

    given = values["parts"]["corrections"]
    if values["parts"]["source"] != "discover":
        if given not in (None, "auto"):
            raise UserError(
                f"parts.corrections={given} corrects parts that are discovered, and parts.source="
                f"{values['parts']['source']} takes those of the data set: correct its masks or classes."
            )
        return CorrectionSources()
    continued = None if resume_from is None else resume_from.absolute().parent.parent
    return CorrectionSources.find(given, folder, dataset_folder(values), continued)


def dataset_folder(values: Mapping[str, Any]) -> Path | None:
    """The folder of the data set, where it has one."""
    folder = values.get("dataset", {}).get("dir")
    return Path(folder).expanduser() if isinstance(folder, str) else None
