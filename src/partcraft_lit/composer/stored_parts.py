"""Names, classes, codes, label maps and thumbnails of a run's images, read as far as they are asked for."""

from __future__ import annotations

import csv
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from partcraft_lit.composer.reader import PartReader, codes_by_name, decoding
from partcraft_lit.composer.views import ImageView
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.types import ABSENT, ImageSource
from partcraft_lit.core.visualization import to_pil
from partcraft_lit.parts.atlas import read_code_tile
from partcraft_lit.parts.corrected import CorrectedSegmenter, cells_of
from partcraft_lit.parts.dataset_parts import label_map_of
from partcraft_lit.parts.discovery import CODES_FILE
from partcraft_lit.parts.isolated import IsolatedCodes, LabelledImage

#: Thumbnails of whole images that are kept.
_KEPT = 512


class StoredParts:
    """The parts of a run's images.

    Codes and names come from ``parts/codes.csv``, so a data set of any size is listed without being read, and also when
    it is gone.

    Args:
        folder: ``parts`` of the run.
        reader: of the run.
        open_source: opens its images; called once, when pixels or classes are asked for.
        store: where label maps are.
        kind: where the parts come from, as in ``parts.source``.
    """

    def __init__(
        self,
        folder: Path,
        reader: PartReader,
        open_source: Callable[[], ImageSource],
        store: Store,
        kind: str = "discover",
    ) -> None:
        self.folder = folder
        self.reader = reader
        self.dictionary = reader.dictionary
        self._open_source = open_source
        self._store = store
        self._kind = kind
        self._lock = threading.RLock()
        self._thumbnail = functools.lru_cache(_KEPT)(self._draw_thumbnail)

    @property
    def part_names(self) -> tuple[str, ...]:
        return self.dictionary.names

    @property
    def code_names(self) -> tuple[str, ...] | None:
        """Classes that codes of foreground parts stand for, where they do."""
        return self.dictionary.class_names

    def images_of(self, part: int, code: int) -> Images:
        """Images that show a code, without reading one.

        Raises:
            UserError: if the run says nothing of its images.
        """
        return Images(self, np.flatnonzero(self.codes[:, part] == code))

    # What codes.csv says.

    @cached_property
    def _rows(self) -> tuple[list[str], NDArray[np.int32]]:
        path = self.folder / CODES_FILE
        try:
            with path.open(encoding="utf-8", newline="") as file:
                head, *lines = csv.reader(file)
            if len(head) != len(self.part_names) + 1:
                raise ValueError(f"{len(head) - 1} parts and not {len(self.part_names)}")
            codes = [[int(code) if code else ABSENT for code in line[1:]] for line in lines]
            table = np.array(codes, dtype=np.int32).reshape(len(lines), len(self.part_names))
        except FileNotFoundError:
            raise UserError(
                f"This run does not say which images it has seen: there is no {path}. Runs that 'partcraft train' "
                "makes have it; a merged run has none."
            ) from None
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{path} cannot be read ({error}); discover the parts again.") from error
        return [line[0] for line in lines], table

    @property
    def names(self) -> list[str]:
        """Of the images, in their order.

        Raises:
            UserError: if the run says nothing of its images.
        """
        return self._rows[0]

    @property
    def codes(self) -> NDArray[np.int32]:
        """(N, M + 1), -1 where a part is absent."""
        return self._rows[1]

    @cached_property
    def counts(self) -> tuple[tuple[int, ...], ...] | None:
        """Per part and code, how many images show it; None if the run says nothing of its images."""
        try:
            codes = self.codes
        except UserError:
            return None
        numbers = self.dictionary.codes_per_part
        columns = [codes[codes[:, part] != ABSENT, part] for part in range(len(numbers))]
        return tuple(
            tuple(np.bincount(column, minlength=number)[:number].tolist())
            for column, number in zip(columns, numbers, strict=True)
        )

    # What the data set says.

    @cached_property
    def _opened(self) -> ImageSource | str:
        """The data set, or why it cannot be opened."""
        try:
            return self._open_source()
        except (UserError, OSError) as error:
            return str(error)

    @property
    def source(self) -> ImageSource:
        """The run's images.

        Raises:
            UserError: if they are not where they were.
        """
        with self._lock:
            if isinstance(self._opened, str):
                raise UserError(
                    f"The images of this run are not to be had: {self._opened} Its parts, codes and thumbnails are; "
                    "open_run(..., dataset_dir=FOLDER) names the images where they are now."
                )
            return self._opened

    @property
    def has_images(self) -> bool:
        """Whether the data set is there."""
        with self._lock:
            return not isinstance(self._opened, str)

    @cached_property
    def _places(self) -> dict[str, int]:
        source = self.source
        return {source.name(place): place for place in range(len(source))}

    def _place(self, index: int) -> int:
        """Of an image in the data set, which may have changed since."""
        place = self._places.get(self.names[index])
        if place is None:
            raise UserError(f"{self.names[index]} is no longer in the data set of this run.")
        return place

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the images; empty without any, or without the data set."""
        return tuple(self.source.class_names) if self.has_images else ()

    @cached_property
    def labels(self) -> NDArray[np.int32]:
        """(N,) class of each image, -1 where it is unknown."""
        labels = np.full(len(self.names), -1, dtype=np.int32)
        if self.class_names:
            for index, name in enumerate(self.names):
                label = self.source.label(self._places[name]) if name in self._places else None
                labels[index] = -1 if label is None else label
        return labels

    def class_name(self, index: int) -> str | None:
        with self._lock:
            label = int(self.labels[index])
        return None if label < 0 else self.class_names[label]

    def pixels(self, index: int) -> Tensor:
        """(3, height, width) uint8.

        Raises:
            UserError: if the image is gone.
        """
        with self._lock, decoding:
            return self.source.image(self._place(index))

    def view(self, index: int) -> ImageView:
        """An image with its parts.

        Raises:
            UserError: if the image is gone.
        """
        with self._lock:
            image, codes = self.pixels(index), torch.from_numpy(self.codes[index]).long()
            label_map, features = self._parts_of(index, image)
        cosines = [
            None if features is None else self.reader.cosine(features[part], part, int(code))
            for part, code in enumerate(codes)
        ]
        about = (codes, cosines, features, self.part_names, index, self.names[index], self.class_name(index))
        return ImageView(image, label_map.numpy(), *about)

    @cached_property
    def isolated(self) -> IsolatedCodes | None:
        """Reads parts of other images with their context masked out; None without the images or their codes."""
        if self.counts is None or not self.has_images:
            return None
        codes = torch.from_numpy(self.codes)
        return IsolatedCodes(self.dictionary, codes, self._labelled, self.reader.isolated_feature)

    def _labelled(self, index: int) -> LabelledImage | None:
        """An image with its parts; None where it is gone."""
        try:
            view = self.view(index)
        except UserError:
            return None
        return view.tensor, torch.from_numpy(view.label_map)

    def _parts_of(self, index: int, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """Label map and (M + 1, D) features of its parts: from the store, else from the predictor."""
        place = self._place(index)
        if self._kind != "discover":
            return label_map_of(self.source, self._kind, place), None
        segmenter, base = self.dictionary.segmenter, self.dictionary.base_segmenter
        grid = functools.cache(lambda: self.reader.grid(image))
        key = stable_hash(self.source.content_hash(place), self.dictionary.features_hash, base.hash)
        entry = self._store.get("parts", key)
        if entry is None:
            label_map, features = base.read_all([grid()])[0]
        else:
            label_map, features = entry["label_map"], entry["part_features"]
        if not isinstance(segmenter, CorrectedSegmenter):
            return label_map, features
        moves = [move for move in segmenter.moves if move.image == self.names[index]]
        return segmenter.correct(label_map, features, lambda label: cells_of(base, grid(), label_map)(label), moves)

    def thumbnail(self, index: int, side: int) -> Image.Image:
        """An image with a longer side of at most ``side`` pixels; the newest are kept."""
        return self._thumbnail(index, side)

    def _draw_thumbnail(self, index: int, side: int) -> Image.Image:
        image = to_pil(self.pixels(index))
        image.thumbnail((side, side))
        return image

    def code_thumbnail(self, part: int, code: int) -> Image.Image | None:
        """The part in the image that is nearest to the code's centroid, as the atlas shows it; else as it is read now.

        Returns:
            None if no image shows the code, or neither the atlas nor the images are there.
        """
        if self.counts is not None and not self.counts[part][code]:
            return None
        number = self.dictionary.num_codes(part)
        return read_code_tile(self.folder, part, code, number) or self._drawn_tile(part, code)

    def _drawn_tile(self, part: int, code: int) -> Image.Image | None:
        if self.counts is None or not self.has_images:
            return None
        for index in np.flatnonzero(self.codes[:, part] == code).tolist():
            try:
                return self.view(index).crop(part)
            except UserError:  # this image is gone; another may be there
                continue
        return None


@dataclass(frozen=True)
class ImageInfo:
    """What is known of an image of the run without reading it.

    Attributes:
        index: in the run's images, from 0.
        name: path inside the data set.
        class_name: None without classes.
        codes: name -> code of the parts that it shows, the background among them.
    """

    index: int
    name: str
    class_name: str | None
    codes: dict[str, int]


class Images(Sequence[ImageInfo]):
    """Some of a run's images, or all: a sequence that reads no image file.

    Args:
        stored: of the run.
        indices: of the images in it.
    """

    def __init__(self, stored: StoredParts, indices: NDArray[Any]) -> None:
        self._stored = stored
        self.indices = indices

    def __len__(self) -> int:
        return len(self.indices)

    @overload
    def __getitem__(self, place: int) -> ImageInfo: ...
    @overload
    def __getitem__(self, place: slice) -> Images: ...
    def __getitem__(self, place: int | slice) -> ImageInfo | Images:
        if isinstance(place, slice):
            return Images(self._stored, self.indices[place])
        index = int(self.indices[place])
        stored = self._stored
        codes = codes_by_name(stored.codes[index].tolist(), stored.part_names)
        return ImageInfo(index, stored.names[index], stored.class_name(index), codes)

    def __iter__(self) -> Iterator[ImageInfo]:
        return (self[place] for place in range(len(self)))

    def __repr__(self) -> str:
        return f"Images({len(self)} of {len(self._stored.names)})"


def _matching(
    stored: StoredParts, class_name: str | None, part: int | None, codes: Sequence[int] | None, text: str | None
) -> NDArray[Any]:
    """Indices of the images with this class, part, code of that part, and text in their name."""
    kept = np.ones(len(stored.names), dtype=bool)
    if class_name is not None:
        kept &= stored.labels == stored.class_names.index(class_name)
    if part is not None:
        kept &= stored.codes[:, part] != ABSENT if codes is None else np.isin(stored.codes[:, part], list(codes))
    if text:
        wanted = text.casefold()
        kept &= np.fromiter((wanted in name.casefold() for name in stored.names), dtype=bool, count=len(kept))
    return np.flatnonzero(kept)


def select_images(
    stored: StoredParts, class_name: str | None, part: int | None, codes: Sequence[int] | None, text: str | None
) -> Images:
    """See ``Run.images``.

    Raises:
        UserError: for a class that the images do not have, or a code without its part.
    """
    if codes is not None and part is None:
        raise UserError(f"code={list(codes)} needs the part whose code it is: images(part='head', code=3).")
    if class_name is not None and class_name not in stored.class_names:
        raise UserError(f"class_name={class_name!r}: no such class. {did_you_mean(class_name, stored.class_names)}")
    return Images(stored, _matching(stored, class_name, part, codes, text))
