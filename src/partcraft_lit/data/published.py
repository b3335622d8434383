"""Shared by the readers of published data sets: finding the folder, reading tables, choosing a split and classes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from partcraft_lit.core.errors import UserError, did_you_mean, nearest_names
from partcraft_lit.core.files import read_text
from partcraft_lit.data.image_files import existing_folder

Split = Literal["train", "test", "all"]
SPLITS: tuple[Split, ...] = ("train", "test", "all")


def find_root(given: str | Path, inner: Sequence[str], marks: Sequence[str], dataset: str) -> Path:
    """The folder of a published data set: the one that was given, or one of ``inner`` inside it.

    Args:
        given: ``dataset.dir``.
        inner: names of folders that the archive unpacks to.
        marks: files and folders of the data set; the first identifies its root.
        dataset: its name in the configuration, for messages.

    Raises:
        UserError: if the folder is missing, holds something else, or is incomplete.
    """
    how = f"'partcraft fetch dataset={dataset}' gets it; a copy elsewhere is named by dataset.dir=/path/to/it."
    if not Path(given).expanduser().exists():
        raise UserError(f"dataset={dataset}: there is no folder {Path(given).expanduser()}. {how}")
    folder = existing_folder(given)
    root = next((place for place in (folder, *(folder / name for name in inner)) if (place / marks[0]).exists()), None)
    if root is None:
        here = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise UserError(f"dataset={dataset}: {folder} holds no {marks[0]}, but {here}. {how}")
    missing = [mark for mark in marks if not (root / mark).exists()]
    if missing:
        raise UserError(
            f"dataset={dataset}: {root} is incomplete: {', '.join(missing)} is missing. Unpack the archive again; {how}"
        )
    return root


def read_table(path: Path, columns: int) -> Iterator[list[str]]:
    """Rows of a whitespace-separated table; the last column may contain spaces.

    Raises:
        UserError: for a row with fewer columns, naming it.
    """
    lines = read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = line.split(maxsplit=columns - 1)
        if len(row) != columns:
            raise UserError(f"{path}, line {number}: wanted {columns} columns, got {line!r}. Unpack the archive again.")
        yield row


def check_listed(root: Path, paths: Sequence[str], listed_in: str) -> None:
    """Raises a UserError if listed images are missing: a partly unpacked archive."""
    missing = [path for path in paths if not (root / path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} images that {listed_in} names are missing in {root}, for instance "
            f"{missing[0]}. Unpack the archive again."
        )


def check_split(split: str) -> None:
    """Raises a UserError for an unknown split."""
    if split not in SPLITS:
        raise UserError(f"dataset.split={split!r}: {nearest_names(split, SPLITS)}Known: {', '.join(SPLITS)}.")


def check_held_out(split: Split, count: int) -> None:
    """Raises a UserError if the images of the test split are among those that are trained on."""
    if split != "train":
        raise UserError(
            f"eval.held_out={count}: images that were not trained on are those of the test split, and this run has "
            f"dataset.split={split}. Take dataset.split=train, or eval.held_out=0."
        )


def choose_classes(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Indices of the wanted classes in the data set's order; all if none are given.

    Case, spaces, underscores, hyphens and the Unicode spelling of accents do not matter.

    Raises:
        UserError: for an unknown class, with the nearest names.
    """
    known = {_plain(name): index for index, name in enumerate(names)}
    for name in wanted:
        if _plain(name) not in known:
            near = did_you_mean(_plain(name), known)
            raise UserError(f"dataset.classes: there is no class {name!r}. {near}")
    return sorted({known[_plain(name)] for name in wanted}) if wanted else list(range(len(names)))


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).lower().replace("_", " ").replace("-", " ").strip()
