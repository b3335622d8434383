"""The Correct screen: what a person says is written to the run's ``parts.yaml`` and applied."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from partcraft_lit.commands.app.shelf import COMPOSING
from partcraft_lit.config import factories
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.part_names import check_part_names
from partcraft_lit.parts.corrections import Corrections, Ref
from partcraft_lit.parts.corrections_file import FILE_NAME, CorrectionsFile
from partcraft_lit.runs.stored import values_of_run

if TYPE_CHECKING:
    from partcraft_lit.runs.correcting import RunCorrector


class Step(BaseModel):
    """One correction, with parts by number.

    Attributes:
        action: what to do.
        part: with which part.
        name: of a rename.
        others: parts that are merged into it.
        pieces: of a split.
        image, target, at: of a move: index of the image, the part that its region belongs to, and a point in pixels.
    """

    model_config = ConfigDict(extra="forbid")
    action: Literal["rename", "merge", "split", "drop", "background", "lock", "unlock", "move"]
    part: Annotated[int, Field(ge=0, le=1000)]
    name: Annotated[str, Field(max_length=40)] = ""
    others: list[int] = []
    pieces: Annotated[int, Field(ge=2, le=8)] = 2
    image: int = 0
    target: int = 0
    at: tuple[float, float] | None = None


class Steps(BaseModel):
    """Corrections that are applied together."""

    model_config = ConfigDict(extra="forbid")
    steps: Annotated[list[Step], Field(min_length=1, max_length=200)]


class Corrector:
    """Corrections of runs, one at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def state(self, run_folder: Path, names: list[str]) -> dict[str, Any]:
        """What is corrected so far, and whether it can be taken back."""
        file = CorrectionsFile(run_folder / FILE_NAME)
        corrections = file.load()
        locked = list(range(1, len(names))) if corrections.lock == "all" else []
        if corrections.lock != "all":
            refs = {_ref(corrections, index, name, _base_parts(file)): index for index, name in enumerate(names)}
            locked = [refs[ref] for ref in corrections.lock if ref in refs]
        return {"can_undo": file.can_undo, "locked": locked, "entries": _sentences(corrections, names)}

    def apply(self, run_folder: Path, names: list[str], image_name: Callable[[int], str], values: Any) -> list[str]:
        """Writes and applies some steps at once.

        Returns:
            What they changed, in sentences.

        Raises:
            UserError: for what cannot be; then nothing is changed.
        """
        steps = Steps.model_validate(values).steps
        with self._lock, rundir.held(run_folder):
            corrector = _corrector_of(run_folder)
            file = corrector.file
            wanted = file.load()
            for step in steps:
                wanted = _with(wanted, step, names, image_name, _base_parts(file))
            return list(corrector.apply(wanted).lines())

    def undo(self, run_folder: Path) -> None:
        """Takes the last step back.

        Raises:
            UserError: if there is none.
        """
        with self._lock, rundir.held(run_folder):
            _corrector_of(run_folder).undo()


def _corrector_of(run_folder: Path) -> RunCorrector:
    from partcraft_lit.runs.correcting import RunCorrector
    from partcraft_lit.runs.settings import DiscoverSettings

    with COMPOSING:
        own = values_of_run(run_folder)
    return RunCorrector(
        run_folder,
        factories.settings_of(DiscoverSettings, {key: own[key] for key in ("seed", "parts", "paths")}),
        factories.make_source(own),
        factories.features_loader(own),
    )


def _base_parts(file: CorrectionsFile) -> int:
    """Parts that discovery gave: these are named by number, which no renaming changes."""
    base = file.base()
    return base.num_parts if base is not None else 0


def _ref(corrections: Corrections, index: int, name: str, base_parts: int) -> Ref:
    """How the file names a part: by its number, or as a piece by the name that the split gave."""
    if index <= base_parts:
        return index
    return next((ref for ref, new in corrections.rename.items() if new == name), name)


def _with(
    corrections: Corrections, step: Step, names: list[str], image_name: Callable[[int], str], base_parts: int
) -> Corrections:
    def ref(index: int) -> Ref:
        if not 0 <= index < len(names):
            raise UserError(f"There is no part {index}.")
        return _ref(corrections, index, names[index], base_parts)

    part = ref(step.part)
    if step.action == "rename":
        name = step.name.strip()
        check_part_names([name])
        return corrections.renamed(part, name)
    if step.action == "merge":
        return corrections.merged([part, *(ref(other) for other in step.others)])
    if step.action == "split":
        return corrections.divided(part, step.pieces)
    if step.action == "drop":
        return corrections.dropped(part)
    if step.action == "background":
        return corrections.as_background(part)
    if step.action == "lock":
        return corrections.locked(part)
    if step.action == "unlock":
        from dataclasses import replace

        locked = range(1, len(names)) if corrections.lock == "all" else corrections.lock
        return replace(corrections, lock=tuple(other for other in locked if other != part))
    return corrections.moved(image_name(step.image), part, ref(step.target), step.at)


def _sentences(corrections: Corrections, names: list[str]) -> list[str]:
    """What the file says, for people."""

    def called(ref: Ref) -> str:
        return names[ref] if isinstance(ref, int) and 0 <= ref < len(names) else str(ref)

    moves: Mapping[tuple[str, str], int] = {}
    found = [f"{called(group[0])} took in {len(group) - 1} more" for group in corrections.merge]
    found += [f"{called(part)} was split in {pieces}" for part, pieces in corrections.split.items()]
    found += [f"part {called(part)} was dropped" for part in corrections.drop]
    found += [f"part {called(part)} is background" for part in corrections.background]
    found += [f"a part was renamed to {name}" for name in corrections.rename.values()]
    moves = {(move.image, called(move.target)): 1 for move in corrections.move}
    found += [f"in {image}, a region became {target}" for image, target in moves]
    return found
