"""Hugging Face's ``imagefolder`` format: images, and tables with their captions and labels."""

from __future__ import annotations

import csv
import io
import json
import logging
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.files import read_text
from partcraft_lit.core.store import Store
from partcraft_lit.data.folder import list_images
from partcraft_lit.data.image_files import ImageFiles, existing_folder

logger = logging.getLogger(__name__)

_TABLES = ("metadata.jsonl", "metadata.csv")


@dataclass(frozen=True)
class _Row:
    path: str
    text: str | None
    label: str | None


class MetadataFolder(ImageFiles):
    """The images that ``metadata.jsonl`` or ``metadata.csv`` files name, with labels and captions.

    A table may lie in the folder or in any folder below it; its column ``file_name`` counts from there. Images that no
    table names are left out, and the log says how many.

    Args:
        dir: the folder.
        split: only tables below a folder of this name ("train"); all if empty.
        label: column with the class, a name or a number; no classes where there is no such column.
        text: column with a caption, returned by ``text_of``.
        class_noun: what the images show, as one noun.
        store: see `ImageFiles`.

    Raises:
        UserError: if there is no table, a row cannot be read, names an image that is missing or lies elsewhere, or if
            some rows have a label and others none.
    """

    def __init__(
        self,
        dir: str | Path,
        split: str = "",
        label: str = "label",
        text: str = "text",
        class_noun: str = "",
        store: Store | str | Path | None = None,
    ) -> None:
        folder = existing_folder(dir)
        tables = _tables(folder, split)
        rows = [row for table in tables for row in _read(folder, table, label, text)]
        if not rows:
            raise UserError(f"dataset.dir: the tables in {folder} ({', '.join(map(str, tables))}) name no images.")
        _check_once(folder, rows)
        names, labels = _classes(rows, label)
        _note_others(folder, rows, split)
        super().__init__(
            folder, [row.path for row in rows], labels=labels, class_names=names, class_noun=class_noun, store=store
        )
        self._texts = {row.path: row.text for row in rows}

    def text_of(self, index: int) -> str | None:
        """The caption of an image, or None."""
        return self._texts[self._paths[index]]


def _tables(folder: Path, split: str) -> list[Path]:
    found = sorted(path for name in _TABLES for path in folder.rglob(name))
    if not found:
        raise UserError(
            f"dataset.dir: there is no metadata.jsonl or metadata.csv in {folder}. A folder of images alone is "
            f"dataset=folder."
        )
    if not split:
        return found
    chosen = [path for path in found if split in path.relative_to(folder).parts[:-1]]
    if not chosen:
        folders = sorted({part for path in found for part in path.relative_to(folder).parts[:-1]})
        raise UserError(
            f"dataset.split={split}: no table lies in a folder of this name. {did_you_mean(split, folders)}"
        )
    return chosen


def _read(folder: Path, table: Path, label: str, text: str) -> Iterator[_Row]:
    for number, row in _lines(table):
        where = f"{table}, row {number}"
        name = row.get("file_name")
        if not isinstance(name, str) or not name:
            raise UserError(f"{where} has no file_name; its columns are {', '.join(map(str, row)) or 'none'}.")
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{where}: file_name {name!r} leads out of the folder of the table.")
        place = _existing(table.parent / path)
        if place is None:
            place = table.parent / path
            raise UserError(f"{where}: there is no image {place}.")
        caption, kind = row.get(text), row.get(label)
        yield _Row(
            place.relative_to(folder).as_posix(),
            caption if isinstance(caption, str) else None,
            None if kind in (None, "") else str(kind),
        )


def _existing(path: Path) -> Path | None:
    """A file by its name in either Unicode spelling: tables and archives from macOS and elsewhere differ."""
    spelled = (Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD"))
    return next((place for place in (path, *spelled) if place.is_file()), None)


def _lines(table: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with their numbers; those of a CSV file count from 2, below the header."""
    content = read_text(table)
    if table.suffix == ".csv":
        try:
            yield from enumerate(csv.DictReader(io.StringIO(content, newline="")), start=2)
        except csv.Error as error:
            raise UserError(f"{table} is not a CSV table: {error}.") from error
        return
    for number, line in enumerate(content.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise UserError(f"{table}, row {number} is not JSON: {error}.") from error
        if not isinstance(row, dict):
            raise UserError(f'{table}, row {number}: wanted an object such as {{"file_name": "a.jpg"}}.')
        yield number, row


def _classes(rows: list[_Row], label: str) -> tuple[list[str], list[int]]:
    """Names in order, numbers by their value, and the class of each row; nothing where no row has a label."""
    without = [row.path for row in rows if row.label is None]
    if len(without) == len(rows):
        return [], []
    if without:
        raise UserError(
            f"{len(without)} of {len(rows)} images have no {label}, for instance {without[0]}. Label all, or none."
        )
    kinds = {row.label for row in rows if row.label is not None}
    numeric = all(kind.lstrip("-").isdigit() for kind in kinds)
    names = sorted(kinds, key=int) if numeric else sorted(kinds)
    index = {name: number for number, name in enumerate(names)}
    return names, [index[row.label] for row in rows if row.label is not None]


def _check_once(folder: Path, rows: list[_Row]) -> None:
    times = Counter(row.path for row in rows)
    twice = [path for path, number in times.items() if number > 1]
    if twice:
        raise UserError(f"dataset.dir: the tables in {folder} name {twice[0]} {times[twice[0]]} times.")


def _note_others(folder: Path, rows: list[_Row], split: str) -> None:
    others = len(set(list_images(folder)[0]) - {row.path for row in rows})
    if others and not split:
        logger.warning("%d images in %s are named by no table and are left out.", others, folder)
