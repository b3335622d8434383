"""Image folders as they come: any nesting, formats and sizes, and files that turn out to be no images."""

from __future__ import annotations

import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.files import read_text
from partcraft_lit.core.images import readable_extensions
from partcraft_lit.core.settings import Positive
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import ABSENT, GroundTruth
from partcraft_lit.data.image_files import ImageFiles, Rejected, existing_folder, printable, special_kind
from partcraft_lit.data.mask_files import MaskFiles

#: Common image formats that Pillow does not read: listed among the rejected files.
_UNSUPPORTED_FORMATS = frozenset(
    {".heic", ".heif", ".jxl", ".svg", ".eps", ".cr2", ".cr3", ".nef", ".arw", ".dng", ".raf", ".orf"}
)
#: Folders of thumbnails and shadow files that programs create beside images.
_SYSTEM_FOLDERS = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})


class ImageFolder(ImageFiles):
    """All readable images below a folder, sorted by path: an image source.

    Hidden files and files without an image extension are skipped; the rest is as in `ImageFiles`. ``a.txt`` beside
    ``a.jpg`` is its caption.

    Args:
        dir: the folder; ``~`` is understood.
        class_noun: what the images show, as one noun ("bird"), if that is known.
        labels: "folder" takes the first sub-folder as the class; "none" has no classes; "auto" is "folder" if every
            image lies in a sub-folder and there are at least two of these, else "none".
        per_class: maximum number of images per class, or of the folder without classes, by path; None for all.
        masks: folder of part masks, see `MaskFiles`; it may lie inside ``dir``. With it the source has ``part_names``
            and ground truth, and is a `GroundTruthSource`.
        store: cache of the verdicts, as a store or its folder; None checks everything at each start.

    Raises:
        UserError: if the folder is missing, a file, empty, without images, or none of them is readable; or if
            ``labels="folder"`` and an image lies outside the sub-folders.
    """

    def __init__(
        self,
        dir: str | Path,
        class_noun: str = "",
        labels: Literal["auto", "folder", "none"] = "auto",
        per_class: Positive | None = None,
        masks: Path | None = None,
        store: Store | str | Path | None = None,
    ) -> None:
        if labels not in ("auto", "folder", "none"):
            raise UserError(f"dataset.labels is {labels!r}. {did_you_mean(str(labels), ('auto', 'folder', 'none'))}")
        folder = existing_folder(dir)
        paths, rejected = list_images(folder, without=masks)
        if per_class is not None:
            paths = _first_of_each(paths, _classes(folder, paths, labels)[1], per_class)
        super().__init__(folder, paths, class_noun=class_noun, store=store, rejected=rejected)
        self.class_names, self._labels = _classes(self.dir, self._paths, labels)
        self._masks: MaskFiles | None = None
        if masks is not None:
            self._masks = MaskFiles(masks, self._paths, [self.size(index) for index in range(len(self))])
            self.part_names = self._masks.part_names  # only here: without it the source does not know the truth

    def text_of(self, index: int) -> str | None:
        """The caption in the text file beside an image, or None.

        Raises:
            UserError: if the file is not UTF-8.
        """
        path = (self.dir / self._paths[index]).with_suffix(".txt")
        return read_text(path) if path.is_file() else None

    def mask(self, index: int) -> Tensor | None:
        """(height, width) uint8 number of the part of each pixel, 0 for background; None without masks."""
        return self._masks.read(index) if self._masks is not None else None

    def truth(self, index: int) -> GroundTruth:
        """The mask as ground truth; the image's class, or 0, is the species of each part in it.

        Raises:
            UserError: if there are no masks.
        """
        mask = self.mask(index)
        if mask is None:
            raise UserError("The folder has no masks: dataset.masks=/path/to/masks names them.")
        shown = torch.bincount(mask.flatten().long(), minlength=len(self.part_names) + 1)[1:] > 0
        species = tuple((self.label(index) or 0) if there else ABSENT for there in shown.tolist())
        return GroundTruth(mask, species, tuple(self.part_names))


def list_images(folder: Path, without: Path | None = None) -> tuple[list[str], list[Rejected]]:
    """Sorted paths of all visible files below a folder with an image extension, and entries that cannot be images.

    Args:
        folder: searched recursively.
        without: a folder inside it to skip.

    Raises:
        UserError: if there are none.
    """
    rejected: list[Rejected] = []
    found = list(_walk(folder, rejected, without))
    extensions = readable_extensions()
    rejected += [
        Rejected(printable(path), f"{_extension(path)} files are not read: convert it to JPEG or PNG")
        for path in found
        if _extension(path) in _UNSUPPORTED_FORMATS - extensions
    ]
    images = [path for path in found if _extension(path) in extensions]
    if not images:
        raise UserError(_nothing_found(folder, found, rejected))
    return images, rejected


def _first_of_each(paths: Sequence[str], labels: Sequence[int], most: int) -> list[str]:
    """At most ``most`` paths of each label, in order."""
    taken: Counter[int] = Counter()
    kept = []
    for path, label in zip(paths, labels or [0] * len(paths), strict=True):
        taken[label] += 1
        if taken[label] <= most:
            kept.append(path)
    return kept


def _walk(root: Path, rejected: list[Rejected], without: Path | None = None) -> Iterator[str]:
    """Relative, sorted paths of all visible files below a folder; follows links, each folder once.

    Broken and circular links, pipes, devices and sockets go to ``rejected``.
    """
    seen: set[tuple[int, int]] = set()  # folders that are not visited again
    if without is not None and without.is_dir():
        seen.add((without.stat().st_dev, without.stat().st_ino))

    def visit(folder: Path, prefix: str) -> Iterator[str]:
        try:
            status = folder.stat()
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            rejected.append(Rejected(printable(prefix), f"the folder cannot be read: {error.strerror}"))
            return
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            return
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith(".") or entry.name in _SYSTEM_FOLDERS:
                continue
            try:
                status = entry.stat()
            except OSError as error:  # a broken link, or one to itself
                rejected.append(Rejected(printable(prefix + entry.name), f"it cannot be opened: {error.strerror}"))
                continue
            if stat.S_ISDIR(status.st_mode):
                yield from visit(folder / entry.name, f"{prefix}{entry.name}/")
            elif odd := special_kind(status):
                rejected.append(Rejected(printable(prefix + entry.name), f"it is {odd}, no regular file"))
            else:
                yield prefix + entry.name

    return iter(sorted(visit(root, "")))


def _extension(path: str) -> str:
    return os.path.splitext(path)[1].lower()  # noqa: PTH122 - once for every file of the folder


def _classes(root: Path, paths: Sequence[str], labels: str) -> tuple[list[str], list[int]]:
    # In NFC: macOS spells accents apart, and its archives mix both spellings.
    folders = [unicodedata.normalize("NFC", path.split("/", 1)[0]) if "/" in path else None for path in paths]
    outside = [path for path, folder in zip(paths, folders) if folder is None]
    names = sorted({folder for folder in folders if folder is not None})
    if labels == "folder" and outside:
        raise UserError(
            f"dataset.labels=folder takes the sub-folder as the class, but {len(outside)} of {len(paths)} images lie "
            f"in {root} itself, for instance {printable(outside[0])}. Move them into a sub-folder, or set "
            f"dataset.labels=none."
        )
    if labels == "none" or outside or (labels == "auto" and len(names) < 2):
        return [], []
    index = {name: number for number, name in enumerate(names)}
    return [printable(name) for name in names], [index[folder] for folder in folders if folder is not None]


def _nothing_found(root: Path, found: Sequence[str], rejected: Sequence[Rejected]) -> str:
    formats = "JPEG, PNG, WebP, TIFF, BMP, GIF or another format that Pillow reads"
    if not found and rejected:
        what = "; ".join(f"{one.path}: {one.reason}" for one in rejected[:3])
        return f"dataset.dir: the folder {root} holds no images ({what}). Put images into it: {formats}."
    if not found:
        hidden = any(root.iterdir())
        what = "holds no visible files" if hidden else "is empty"
        return f"dataset.dir: the folder {root} {what}. Put images into it: {formats}."
    endings = Counter(_extension(path) or "without an ending" for path in found).most_common(5)
    what = ", ".join(f"{count} {ending}" for ending, count in endings)
    advice = " Convert them to JPEG or PNG." if any(ending in _UNSUPPORTED_FORMATS for ending, _ in endings) else ""
    plural = "" if len(found) == 1 else "s"
    return (
        f"dataset.dir: the folder {root} holds no images, only {len(found)} other file{plural} ({what}).{advice} "
        f"Wanted: {formats}."
    )
