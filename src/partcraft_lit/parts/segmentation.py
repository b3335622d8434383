"""Segments all images; results lie on disk and are read in bounded pieces."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.types import ABSENT, ImageSource, PatchFeatures
from partcraft_lit.parts.corrected import CorrectedSegmenter, Move, cells_of
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.kmeans import nearest
from partcraft_lit.parts.on_disk import FeatureCache, LabelMaps, MappedRows
from partcraft_lit.parts.predictor import present_parts
from partcraft_lit.parts.segmenter import Segmenter

#: (stage, done, of how many)
Progress = Callable[[str, int, int], None]

#: Vectors of one part that are looked at together.
VECTORS = 65_536
#: Images whose parts are described together.
IMAGES = 4096


def silent(stage: str, done: int, total: int) -> None:
    """A progress callback that reports nothing."""


class SegmentedImages:
    """Parts of N images.

    In memory are 16 bytes per image and one per part; the rest is in temporary files, which go with this object.

    Args:
        number: of images.
        num_labels: M + 1.
        dim: width D of the features.
        dtype: of the part features.

    Attributes:
        label_maps: one (grid height, grid width) uint8 map per image.
        part_features: (N, M + 1, D), zeros where a part is absent; mapped from its file.
        present: (N, M + 1) bool.
    """

    def __init__(self, number: int, num_labels: int, dim: int, dtype: torch.dtype) -> None:
        self._rows = MappedRows((number, num_labels, dim), dtype)
        self.label_maps = LabelMaps(number)
        self.part_features = self._rows.rows
        self.present = torch.zeros(number, num_labels, dtype=torch.bool)

    def put(self, index: int, entry: dict[str, Tensor]) -> None:
        """Takes in a label map and part features, (M + 1, D)."""
        self.label_maps.put(index, entry["label_map"])
        self._rows.put(index, entry["part_features"])
        self.present[index] = present_parts(entry["label_map"], self.present.shape[1])

    def vectors(self, part: int, images: Tensor) -> Iterator[Tensor]:
        """(n, D) float32 features of a part, in the order of ``images``, in pieces."""
        for chosen in images.split(VECTORS):
            yield self.part_features[chosen, part].float()
            self._rows.release()

    def release(self) -> None:
        """Frees the memory of the features that were looked at."""
        self._rows.release()

    def read_codes(self, dictionary: PartDictionary) -> Tensor:
        """(N, M + 1) nearest codes, ``ABSENT`` where a part is not present; as the dictionary reads them."""
        codes = torch.full(self.present.shape, ABSENT, dtype=torch.long)
        for part, table in enumerate(dictionary.code_centroids):
            images = self.present[:, part].nonzero()[:, 0]
            pieces = [nearest(vectors, table) for vectors in self.vectors(part, images)]
            codes[images, part] = torch.cat([codes.new_empty(0), *pieces])
        return codes

    def describe(self, dictionary: PartDictionary, codes: Tensor) -> list[dict[str, Any]]:
        """Statistics of each part; see :func:`describe_parts`."""
        described = describe_parts(dictionary, self.label_maps, codes, self.part_features, self._rows.release)
        self._rows.release()
        return described


def segment_images(
    source: ImageSource,
    features: PatchFeatures,
    segmenter: Segmenter | CorrectedSegmenter,
    *,
    batch_size: int,
    dtype: torch.dtype,
    store: Store | None,
    progress: Progress,
    cache: FeatureCache | None,
    patience_s: float = 0.0,
) -> SegmentedImages:
    """Segments all images of ``source``; stored and cached results are not computed again.

    With a cache, the features of an image are those that the network gives for its whole block of ``batch_size``
    images of the list: the same to the last bit whichever process segments it, and whatever is stored of the others.
    Without one, nothing but what is missing is given to the network.

    Processes of a run share the blocks: each does those that it has cached, and others only after ``patience_s``
    seconds without news of them.
    """
    if isinstance(segmenter, CorrectedSegmenter):
        base = segment_images(
            source,
            features,
            segmenter.base,
            batch_size=batch_size,
            dtype=dtype,
            store=store,
            progress=progress,
            cache=cache,
            patience_s=patience_s,
        )
        cells = CellDirections(source, features, segmenter.base, base.label_maps, batch_size, store)
        return correct_images(source, segmenter, base, cells, progress)
    number = len(source)

    def describe(indices: list[int]) -> list[Tensor]:
        """Features of images of one block."""
        if cache is None:
            return [grid for _, _, grid in with_features(source, features, indices, batch_size)]
        cached = [grid for index in indices if (grid := cache.get(index)) is not None]
        if len(cached) == len(indices):
            return cached
        start = indices[0] // batch_size * batch_size
        block = range(start, min(start + batch_size, number))
        computed = {index: grid for index, _, grid in with_features(source, features, block, batch_size)}
        return [computed[index] for index in indices]

    def compute(indices: list[int]) -> Iterable[dict[str, Tensor]]:
        for label_map, part_features in segmenter.read_all(describe(indices)):
            yield {"label_map": label_map, "part_features": part_features}

    segmented = SegmentedImages(number, segmenter.num_parts + 1, segmenter.dim, dtype)
    if store is None:
        for start in range(0, number, batch_size):
            batch = list(range(start, min(start + batch_size, number)))
            for index, entry in zip(batch, compute(batch), strict=True):
                segmented.put(index, entry)
            progress("label images", batch[-1] + 1, number)
    else:
        keys = [stable_hash(source.content_hash(index), features.hash, segmenter.hash) for index in range(number)]
        starts = range(0, number, batch_size)
        cached = [block for block, start in enumerate(starts) if cache is not None and start in cache]
        store.fill(
            "parts",
            keys,
            compute,
            batch_size,
            lambda done, total: progress("label images", done, total),
            segmented.put,
            share=cached or None,
            patience_s=patience_s if cached else 0.0,
        )
    return segmented


class CellDirections:
    """Directions of the cells with a label, which corrections of single cells need; kept in the store.

    Args:
        source, features, segmenter: the images, what describes their patches, and what has labelled them.
        label_maps: of all images, by this segmenter.
        batch_size: images given to ``features`` at once.
        store: keeps what was computed; None computes it at every request.
    """

    def __init__(
        self,
        source: ImageSource,
        features: PatchFeatures,
        segmenter: Segmenter,
        label_maps: Sequence[Tensor],
        batch_size: int,
        store: Store | None,
    ) -> None:
        self._source, self._features, self._segmenter = source, features, segmenter
        self._label_maps, self._batch_size, self._store = label_maps, batch_size, store

    def fill(self, label: int, images: Sequence[int], progress: Progress) -> None:
        """Computes what the store lacks for images that show the label."""
        if self._store is not None:
            keys = [self._key(index, label) for index in images]
            self._store.fill(
                "part_cells",
                keys,
                lambda positions: self._compute([images[position] for position in positions], label),
                self._batch_size,
                lambda done, total: progress("read cells", done, total),
            )

    def __call__(self, index: int, label: int) -> Tensor:
        """(cells, D) half precision, row by row."""
        found = None if self._store is None else self._store.get("part_cells", self._key(index, label))
        if found is not None:
            return found["cells"]
        (entry,) = self._compute([index], label)
        if self._store is not None:
            self._store.put("part_cells", self._key(index, label), entry)
        return entry["cells"]

    def _key(self, index: int, label: int) -> str:
        return stable_hash(self._source.content_hash(index), self._features.hash, self._segmenter.hash, label)

    def _compute(self, images: Sequence[int], label: int) -> Iterator[dict[str, Tensor]]:
        for index, _, grid in with_features(self._source, self._features, images, self._batch_size):
            yield {"cells": cells_of(self._segmenter, grid, self._label_maps[index])(label)}


def correct_images(
    source: ImageSource,
    segmenter: CorrectedSegmenter,
    base: SegmentedImages,
    cells: CellDirections,
    progress: Progress,
) -> SegmentedImages:
    """What a corrected segmenter makes of images that the segmenter underneath has read."""
    number = len(source)
    for label in segmenter.splits:
        cells.fill(label, base.present[:, label].nonzero()[:, 0].tolist(), progress)
    moves: dict[str, list[Move]] = defaultdict(list)
    for move in segmenter.moves:
        moves[move.image].append(move)
    corrected = SegmentedImages(number, segmenter.num_parts + 1, segmenter.dim, base.part_features.dtype)
    for index in range(number):
        label_map, part_features = segmenter.correct(
            base.label_maps[index],
            base.part_features[index].float(),
            functools.partial(cells, index),
            moves.get(source.name(index), ()) if moves else (),
        )
        corrected.put(index, {"label_map": label_map, "part_features": part_features})
        if (index + 1) % IMAGES == 0 or index + 1 == number:
            base.release()
            progress("correct parts", index + 1, number)
    return corrected


def with_features(
    source: ImageSource, features: PatchFeatures, indices: Sequence[int], batch_size: int
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Index, pixels and (grid height, grid width, D) features of each image; holds one batch."""
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        images = [source.image(index) for index in batch]
        yield from zip(batch, images, features(images), strict=True)


def describe_parts(
    dictionary: PartDictionary,
    label_maps: Sequence[Tensor],
    codes: Tensor,
    part_features: Tensor,
    release: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Per part, the background first: name, images that show it, share of cells, codes, cosine to its code's centroid.

    Args:
        dictionary: with these parts.
        label_maps, codes, part_features: of N images, as in ``Discovery``.
        release: called after each piece that was read.
    """
    parts = dictionary.num_parts + 1
    shares = torch.empty(len(codes), parts)
    for index, label_map in enumerate(label_maps):
        shares[index] = _shares(label_map, parts)
    share = shares.mean(dim=0)
    similarity = torch.empty(codes.shape)  # (N, M + 1)
    for start in range(0, len(codes), IMAGES):
        chunk = slice(start, start + IMAGES)
        similarity[chunk] = F.cosine_similarity(part_features[chunk].float(), dictionary.centroids(codes[chunk]), dim=2)
        release()
    present = codes != ABSENT

    def mean_similarity(part: int) -> float | None:
        values = similarity[present[:, part], part]
        return round(float(values.mean()), 4) if len(values) else None

    return [
        {
            "name": dictionary.names[part],
            "images": int(present[:, part].sum()),
            "share": round(float(share[part]), 4),
            "codes": dictionary.num_codes(part),
            "similarity": round(float(similarity[present[:, part], part].mean()), 4)
            if present[:, part].any()
            else None,
        }
        for part in range(parts)
    ]


def _shares(label_map: Tensor, num_labels: int) -> Tensor:
    return torch.bincount(label_map.flatten().long(), minlength=num_labels) / label_map.numel()
