"""``parts.yaml`` on disk: read, written, taken back; and the dictionaries that belong to it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.files import atomic_write, read_text
from partcraft_lit.parts.corrections import Corrections
from partcraft_lit.parts.dictionary import JSON_NAME, PartDictionary

#: Name of the file beside a run or a data set.
FILE_NAME = "parts.yaml"
#: Folder beside it.
_BESIDE = ".parts"
#: A file of corrections is short; a larger one is something else.
_MAX_BYTES = 4 << 20
_HEADER = "# Corrections of the discovered parts: docs/corrections.md\n"


@dataclass(frozen=True)
class CorrectionsFile:
    """The file and what lies beside it.

    Attributes:
        path: of ``parts.yaml``; it need not exist.
    """

    path: Path

    @property
    def base_folder(self) -> Path:
        """Where the dictionary that is corrected is kept."""
        return self.path.parent / _BESIDE / "base"

    def load(self) -> Corrections:
        """The corrections; none, if there is no file.

        Raises:
            UserError: as ``parse_corrections``.
        """
        return load_corrections(self.path) if self.path.is_file() else Corrections()

    def save(self, corrections: Corrections) -> None:
        """Writes the file; the former one is kept in the history."""
        former = self.path.read_bytes() if self.path.is_file() else b""
        content = to_yaml(corrections)
        if former == content.encode():
            return
        number = max((int(path.stem) for path in self._history()), default=0) + 1
        atomic_write(self._history_folder / f"{number:04d}.yaml", former)
        atomic_write(self.path, content)

    def undo(self) -> Corrections:
        """Takes the last ``save`` back, and returns what is said then.

        Raises:
            UserError: if nothing was saved.
        """
        history = self._history()
        if not history:
            raise UserError(f"There is nothing to undo: {self.path} has no earlier version.")
        content = history[-1].read_bytes()
        if content:
            atomic_write(self.path, content)
        else:
            self.path.unlink(missing_ok=True)
        history[-1].unlink()
        return self.load()

    @property
    def can_undo(self) -> bool:
        return bool(self._history())

    @property
    def digest(self) -> str:
        """Hash of what the file says; without a file, of the parts of the run beside it."""
        path = self.path if self.path.is_file() else self.path.parent / "parts" / JSON_NAME
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def base(self) -> PartDictionary | None:
        """The dictionary that is corrected: the one that is kept, else that of the run which the file lies beside."""
        for folder in (self.base_folder, self.path.parent / "parts"):
            if (folder / JSON_NAME).is_file():
                return PartDictionary.load(folder)
        return None

    def applied(self) -> list[PartDictionary]:
        """Dictionaries that came out of corrections before, the newest first."""
        return [PartDictionary.load(folder) for folder in reversed(self._applied())]

    def keep(self, base: PartDictionary, corrected: PartDictionary) -> None:
        """Keeps both, so that numbers of parts and codes stay as more images or corrections come.

        Raises:
            UserError: if the folder cannot be written to.
        """
        if not (self.base_folder / JSON_NAME).is_file():
            base.save(self.base_folder)
        if corrected.hash != base.hash and all(one.hash != corrected.hash for one in self.applied()):
            number = max((int(folder.name) for folder in self._applied()), default=0) + 1
            corrected.save(self._applied_folder / f"{number:04d}")

    @property
    def _history_folder(self) -> Path:
        return self.path.parent / _BESIDE / "history"

    @property
    def _applied_folder(self) -> Path:
        return self.path.parent / _BESIDE / "applied"

    def _history(self) -> list[Path]:
        return sorted(path for path in self._history_folder.glob("*.yaml") if path.stem.isdecimal())

    def _applied(self) -> list[Path]:
        return sorted(
            path.parent for path in self._applied_folder.glob(f"*/{JSON_NAME}") if path.parent.name.isdecimal()
        )


def load_corrections(path: str | Path) -> Corrections:
    """Reads ``parts.yaml``.

    Raises:
        UserError: if it cannot be read, is not YAML, or says something that corrections are not.
    """
    path = Path(path)
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise UserError(f"{path} has {path.stat().st_size:,} bytes; corrections of parts are a few lines.")
    return parse_corrections(read_text(path), str(path))


def parse_corrections(text: str, where: str = FILE_NAME) -> Corrections:
    """Corrections from the text of a file.

    Args:
        text: YAML.
        where: name of the file, for messages.

    Raises:
        UserError: with the line for text that is not YAML, has tags, aliases or a key twice; with the nearest name for
            an unknown key; for a value of the wrong kind.
    """
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{where} is not readable YAML: {_reason(error)}") from error
    except RecursionError as error:
        raise UserError(f"{where} is nested too deeply.") from error
    if values is None:
        return Corrections()
    if not isinstance(values, Mapping):
        raise UserError(f"{where}: wanted keys such as 'merge: [[2, 5]]', got {type(values).__name__}.")
    known = list(Corrections.__dataclass_fields__)
    for key in values:
        if key not in known:
            raise UserError(f"{where}: there is no correction {key!r}. {did_you_mean(str(key), known)}")
    return _checked(values, where)


def to_yaml(corrections: Corrections) -> str:
    """The text of a file that says this."""
    return _HEADER + "".join(
        yaml.safe_dump({key: value}, sort_keys=False, allow_unicode=True, default_flow_style=None)
        for key, value in corrections.plain().items()
    )


def _checked(values: Mapping[str, Any], where: str) -> Corrections:
    """Values of the right types."""
    given = {key: value for key, value in values.items() if value is not None}
    for key, value in given.items():
        if _has_truth_value(value):
            raise UserError(
                f"{where}: under {key} stands a word that YAML takes for true or false (yes, no, on, off); put names "
                "like these in quotes."
            )
    for key in ("drop", "background", "lock"):
        if isinstance(given.get(key), str | int) and not isinstance(given[key], bool) and given[key] != "all":
            given[key] = [given[key]]
    merge = given.get("merge")
    if isinstance(merge, list) and merge and not any(isinstance(group, list) for group in merge):
        raise UserError(f"{where}: merge takes groups of parts, so one group is written 'merge: [{merge}]'.")
    if isinstance(given.get("move"), list):
        given["move"] = [_move(entry, where) for entry in given["move"]]
    try:
        return _ADAPTER.validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(
            str(piece) for piece in first["loc"] if piece not in ("int", "str", "tuple[Union[int, str], ...]")
        )
        raise UserError(
            f"{where}: {place} is {first['input']!r}. {first['msg'][:1].upper()}{first['msg'][1:]}; "
            f"for example {_EXAMPLES.get(place.partition('.')[0], '')}."
        ) from error


def _has_truth_value(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(_has_truth_value(item) for pair in value.items() for item in pair)
    return any(map(_has_truth_value, value)) if isinstance(value, list) else isinstance(value, bool)


_ADAPTER = TypeAdapter(Corrections)
_EXAMPLES = {
    "rename": "'rename: {1: head}'",
    "merge": "'merge: [[2, 5]]'",
    "split": "'split: {4: 2}'",
    "drop": "'drop: [3]'",
    "background": "'background: [3]'",
    "lock": "'lock: [1, 2]' or 'lock: all'",
    "move": "'move: [{image: a.png, from: 2, to: 4, at: [60, 25]}]'",
}
_MOVE_KEYS = {"image": "image", "from": "source", "to": "target", "at": "at"}


def _move(entry: Any, where: str) -> Any:
    if not isinstance(entry, Mapping):
        raise UserError(f"{where}: move takes entries such as {_EXAMPLES['move']}, got {entry!r}.")
    for key in entry:
        if key not in _MOVE_KEYS:
            raise UserError(f"{where}: a move has no {key!r}. {did_you_mean(str(key), _MOVE_KEYS)}")
    for key in ("image", "from", "to"):
        if key not in entry:
            raise UserError(f"{where}: a move lacks {key!r}, as in {_EXAMPLES['move']}.")
    return {_MOVE_KEYS[key]: value for key, value in entry.items()}


class _Loader(yaml.SafeLoader):
    """Refuses what is silently lost or grows: a key twice, and aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(None, None, "aliases (*name) are not read here", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key, _ in node.value:
            if keys.count(key.value) > 1:
                raise yaml.MarkedYAMLError(None, None, f"{key.value!r} stands there twice", key.start_mark)
        return super().construct_mapping(node, deep)


def _reason(error: yaml.YAMLError) -> str:
    if not isinstance(error, yaml.MarkedYAMLError):
        return re.sub(r"\s+", " ", str(error))
    problem = error.problem or str(error)
    if "could not determine a constructor" in problem:
        problem = "tags such as !!python/object are not read; write plain values"
    mark = error.problem_mark
    return problem if mark is None else f"line {mark.line + 1}, column {mark.column + 1}: {problem}"


def find_file(given: str | Path | None, *beside: Path | None) -> CorrectionsFile | None:
    """The file that ``parts.corrections`` means.

    Args:
        given: "auto" looks for ``parts.yaml`` in the folders of ``beside``, in that order; None for no corrections;
            else a file, or a folder that has one or is a run, whose parts are kept then.
        beside: folders, or None.

    Raises:
        UserError: if what is named is not there.
    """
    if given is None:
        return None
    if str(given) == "auto":
        for folder in beside:
            if folder is not None and (folder / FILE_NAME).is_file():
                return CorrectionsFile(folder / FILE_NAME)
        return None
    path = Path(given).expanduser()
    if path.is_dir():
        file = CorrectionsFile(path / FILE_NAME)
        if file.path.is_file() or file.base() is not None:
            return file
        raise UserError(f"parts.corrections={given}: this folder has no {FILE_NAME}, and no parts/ of a run.")
    if not path.is_file():
        near = did_you_mean(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else ""
        raise UserError(f"parts.corrections={given}: there is no such file. {near}".rstrip())
    return CorrectionsFile(path)
