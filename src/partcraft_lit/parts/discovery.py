"""Finds the parts of the objects in a set of images: foreground, then parts, then codes.

Memory is bounded: k-means sees a sample of patches drawn evenly from all images, then a sample of the images that show
a part. Label maps and one vector per part and image lie on disk (``parts.segmentation``); only codes are in memory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.types import ABSENT, ImageSource, PatchFeatures
from partcraft_lit.parts.corrected import CorrectedSegmenter
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.foreground import POOR_CONFIDENCE, ForegroundChoice, PatchPlaces, choose_foreground
from partcraft_lit.parts.kmeans import all_finite, assign, cluster_codes, cosine_kmeans, nearest, spread
from partcraft_lit.parts.on_disk import FeatureCache
from partcraft_lit.parts.sample import Sample, sample_patches
from partcraft_lit.parts.segmentation import Progress, SegmentedImages, segment_images, silent
from partcraft_lit.parts.segmenter import Segmenter
from partcraft_lit.parts.settings import DISCOVERY_REVISION, PartsSettings

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: In the folder of the parts: the codes of every image.
CODES_FILE = "codes.csv"
#: Tried in this order where the number of foreground clusters is left open.
FOREGROUND_TRIALS = (2, 4, 8, 16, 32)
#: Patches that these trials are fitted on at most.
FOREGROUND_PATCHES = 50_000
#: A process waits for the others' label maps as long as it took to look at the images, which making them would cost it;
#: but not longer than this.
MOST_PATIENCE_S = 60.0
#: A larger number has to raise the separation by this factor, since finer clusters fit any rule better.
FOREGROUND_GAIN = 1.02


@dataclass
class DiscoveryReport:
    """Statistics and notes of a discovery.

    Attributes:
        num_images, num_patches: images, and patches in the sample.
        foreground: the rule's choice: confidence 0...1, share of the area, evidence of every cluster.
        parts: per part, the background first: name, images that show it, share of all cells, codes, mean cosine of its
            images to their code's centroid.
        lowered_codes: name -> codes of each foreground part that has fewer than K.
        notes: deviations from the settings, in sentences.
        seconds: per stage.
        from_store: read from the store, nothing was fitted.
    """

    num_images: int
    num_patches: int
    foreground: dict[str, Any]
    parts: list[dict[str, Any]] = field(default_factory=list)
    lowered_codes: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    from_store: bool = False

    def describe(self, parts: list[dict[str, Any]], settings: PartsSettings) -> None:
        """Takes in what ``describe_parts`` gives."""
        self.parts = parts
        if settings.codes == "kmeans":
            self.lowered_codes = {part["name"]: part["codes"] for part in parts[1:] if 0 < part["codes"] < settings.K}
        if self.lowered_codes:
            codes = ", ".join(f"{name} {number}" for name, number in self.lowered_codes.items())
            self.notes.append(f"Fewer codes than parts.K={settings.K}, as too few images show these parts: {codes}.")

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Discovery:
    """Parts of all images of a source, in its order.

    Attributes:
        dictionary: reads parts and codes of further images.
        label_maps: one (grid height, grid width) uint8 map per image, 0...M, over the whole image (its centre, if it is
            longer than 3:1: ``images.clamp_aspect``), read from a temporary file.
        codes: (N, M + 1) int64, ``ABSENT`` where a part is absent.
        part_features: (N, M + 1, D), zeros where absent; mapped from a temporary file.
        report: statistics and notes.
    """

    dictionary: PartDictionary
    label_maps: Sequence[Tensor]
    codes: Tensor
    part_features: Tensor
    report: DiscoveryReport


def discover(
    source: ImageSource,
    features: PatchFeatures,
    settings: PartsSettings,
    *,
    seed: int,
    batch_size: int = 32,
    cache_bytes: int = 2 << 30,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Discovery:
    """Finds parts in the images of ``source``.

    Args:
        source: the images.
        features: describes their patches.
        settings: M, K and all else that decides the result; its ``features`` and ``source`` are not used here.
        seed: of every random choice.
        batch_size: images given to ``features`` at once: fixed blocks of the list.
        cache_bytes: features of the first pass kept in a temporary file for the second; the others are computed twice.
        store: keeps dictionaries and label maps, so that an equal discovery is read from it. Processes of a run share
            both passes over it (``Store.fill``).
        progress: called with stage, done and total.

    Returns:
        Equal for equal arguments, bit by bit on one machine.

    Raises:
        UserError: for settings that do not fit these images.

    Source: PartCraft's three tiers. Differs: fitted on all images instead of 100; the foreground is chosen by rule;
    tier 2 sees foreground patches only, so no constant vector takes a cluster; tier 3 sees only images that show the
    part.
    """
    return _Run(source, features, settings, seed, batch_size, cache_bytes, store, progress or silent).discover()


def read_parts(
    source: ImageSource,
    features: PatchFeatures,
    dictionary: PartDictionary,
    *,
    batch_size: int = 32,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[Sequence[Tensor], Tensor, Tensor]:
    """Reads the parts of images with a dictionary that exists, for instance after images were added.

    Returns:
        label maps, codes (N, M + 1) by nearest centroid, part features (N, M + 1, D); as in :class:`Discovery`.
    """
    segmented = segment_images(
        source,
        features,
        dictionary.segmenter,
        batch_size=batch_size,
        dtype=storage_dtype(len(source), int(dictionary.settings.get("max_patches", len(source)))),
        store=store,
        progress=progress or silent,
        cache=None,
    )
    return segmented.label_maps, segmented.read_codes(dictionary), segmented.part_features


class _Run:
    """One discovery: its inputs, and the notes and timings it collects."""

    def __init__(
        self,
        source: ImageSource,
        features: PatchFeatures,
        settings: PartsSettings,
        seed: int,
        batch_size: int,
        cache_bytes: int,
        store: Store | None,
        progress: Progress,
    ) -> None:
        self.source = source
        self.features = features
        self.settings = settings
        self.seed = seed
        self.batch_size = batch_size
        self.cache_bytes = cache_bytes
        self.store = store
        self.progress = progress
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    def discover(self) -> Discovery:
        self._check_source()
        stored = self._load_stored()
        if stored is not None:
            return self._apply_stored(stored)
        with FeatureCache(self.cache_bytes) as cache:
            segmenter, report = self._fit_sample(cache)
            segmented, segmenter = self._timed("label images", lambda: self._segment(segmenter, cache))
        tables, codes = self._timed("fit codes", lambda: self._fit_codes(segmented))
        dictionary = self._name(segmenter, tables, report)
        report.describe(segmented.describe(dictionary, codes), self.settings)
        report.seconds = self.seconds
        self._store_dictionary(dictionary)
        return Discovery(dictionary, segmented.label_maps, codes, segmented.part_features, report)

    def _fit_sample(self, cache: FeatureCache) -> tuple[Segmenter, DiscoveryReport]:
        """Tiers 1 and 2. The sample is forgotten at its end."""
        sample = self._timed("sample patches", lambda: self._sample_patches(cache))
        segmenter, choice = self._timed("fit foreground and parts", lambda: self._fit_segmenter(sample))
        return segmenter, DiscoveryReport(
            num_images=len(self.source), num_patches=len(sample.features), foreground=choice.as_dict(), notes=self.notes
        )

    # --- before anything expensive ------------------------------------------------------------------------------

    def _check_source(self) -> None:
        number, num_codes = len(self.source), self.settings.K
        if number == 0:
            raise UserError("There are no images to discover parts in.")
        if self.settings.codes == "class":
            self._check_labels()
            return
        if number < num_codes and self.settings.on_too_few == "stop":
            raise UserError(
                f"parts.K={num_codes} codes per part cannot be told apart in {number} images. Give "
                f"parts.K={max(number // 4, 1)} or less, or parts.on_too_few=lower."
            )

    def _check_labels(self) -> None:
        unlabelled = [index for index in range(len(self.source)) if self.source.label(index) is None]
        if unlabelled or not self.source.class_names:
            example = f", for example {self.source.name(unlabelled[0])}" if unlabelled else ""
            missing, number = len(unlabelled) or "all", len(self.source)
            raise UserError(
                f"parts.codes=class needs a class for every image, but {missing} of {number} have none{example}. "
                "Put the images into one folder per class, or use parts.codes=kmeans."
            )

    # --- the store ----------------------------------------------------------------------------------------------

    def _key(self) -> str:
        # Settings that change no fit; names, for instance, may change without a new one.
        unrelated = ("names", "on_too_few", "features", "source", "save_masks", "corrections")
        settings = {name: value for name, value in asdict(self.settings).items() if name not in unrelated}
        images = [self.source.content_hash(index) for index in range(len(self.source))]
        labels = [self.source.label(index) for index in range(len(images))] if self.settings.codes == "class" else []
        return stable_hash("dictionary", DISCOVERY_REVISION, settings, self.seed, self.features.hash, images, labels)

    def _load_stored(self) -> PartDictionary | None:
        entry = self.store.get("dictionary", self._key()) if self.store is not None else None
        if entry is None:
            return None
        try:
            dictionary = PartDictionary.from_bytes(_as_bytes(entry["tensors"]), _as_bytes(entry["json"]).decode())
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("A stored part dictionary cannot be read and is fitted again: %s", error)
            return None
        lowered = dictionary.num_parts < self.settings.M
        return None if lowered and self.settings.on_too_few == "stop" else dictionary

    def _store_dictionary(self, dictionary: PartDictionary) -> None:
        if self.store is None:
            return
        tensors, description = dictionary.to_bytes()
        self.store.put(
            "dictionary", self._key(), {"tensors": _as_tensor(tensors), "json": _as_tensor(description.encode())}
        )

    def _apply_stored(self, stored: PartDictionary) -> Discovery:
        dictionary = stored.renamed(self._names(stored.num_parts))
        with FeatureCache(0) as cache:
            segmented = self._timed("label images", lambda: self._segment_all(dictionary.segmenter, cache))
        codes = segmented.read_codes(dictionary)
        if self.settings.codes == "class":
            codes = with_classes(codes, segmented.present, self._labels())
        metadata = dictionary.metadata
        report = DiscoveryReport(
            num_images=len(self.source),
            num_patches=int(metadata["num_patches"]),
            foreground=dict(metadata["foreground"]),
            notes=list(metadata["notes"]),
            seconds=self.seconds,
            from_store=True,
        )
        report.describe(segmented.describe(dictionary, codes), self.settings)
        return Discovery(dictionary, segmented.label_maps, codes, segmented.part_features, report)

    # --- pass 1 -------------------------------------------------------------------------------------------------

    def _sample_patches(self, cache: FeatureCache) -> Sample:
        sample = sample_patches(
            self.source,
            self.features,
            seed=self.seed,
            max_patches=self.settings.max_patches,
            batch_size=self.batch_size,
            cache=cache,
            store=self.store,
            progress=self.progress,
        )
        if not all_finite(sample.features):
            raise UserError(f"Features {self.features.id!r} hold NaN or infinite values; use float32 weights.")
        return sample

    # --- tiers 1 and 2 ------------------------------------------------------------------------------------------

    def _fit_segmenter(self, sample: Sample) -> tuple[Segmenter, ForegroundChoice]:
        """The sample's features become directions in place: they may be the largest thing in memory."""
        dim = sample.features.shape[1]
        offset = sample.features.mean(dim=0) if self.settings.center else torch.zeros(dim)
        directions = semantic(sample.features.sub_(offset), self.features)
        F.normalize(directions, dim=1, out=directions)
        if not bool((directions.norm(dim=1) > 0.5).any()):
            raise UserError("All patches of all images look the same, so there are no parts to find.")
        centroids, choice = self._fit_foreground(directions, sample.places)
        foreground = choice.is_foreground[nearest(directions, centroids)]
        images = sample.places.image[foreground]
        parts, labels = self._kmeans(directions[foreground], self.settings.M, "parts", groups=images)
        if len(parts) < self.settings.M:
            self._too_few_parts(len(parts), f"the foreground has {len(parts)} distinct kinds of patches only")
        rows = sample.places.rows[foreground]
        height = torch.zeros(len(parts)).index_add_(0, labels, rows) / torch.bincount(labels)
        order = height.argsort(stable=True)  # from the top of the image down, so that numbers mean something
        segmenter = Segmenter(
            offset,
            centroids,
            choice.is_foreground,
            parts[order],
            self.settings.min_cells,
            self.settings.min_component_size,
        )
        return segmenter, choice

    def _fit_foreground(self, directions: Tensor, places: PatchPlaces) -> tuple[Tensor, ForegroundChoice]:
        num_clusters = self.settings.foreground_clusters
        best: tuple[Tensor, ForegroundChoice] | None = None
        for number in FOREGROUND_TRIALS if num_clusters == "auto" else (num_clusters,):
            nredo = 1 if number > 8 else None  # of many clusters a few poor ones do no harm
            centroids, labels = self._kmeans(directions, number, f"foreground{number}", nredo, FOREGROUND_PATCHES)
            choice = choose_foreground(labels, places, len(centroids))
            if best is None or choice.separation > FOREGROUND_GAIN * best[1].separation:
                best = centroids, choice
        assert best is not None
        if best[1].is_foreground.all():
            raise UserError("All patches of all images look the same, so object and background cannot be told apart.")
        if best[1].confidence < POOR_CONFIDENCE:
            self._note(
                f"The object could hardly be told from the background (confidence {best[1].confidence:.2f} of 1): look "
                "at the masks before training. Other features (parts.features) usually help."
            )
        return best

    def _kmeans(
        self,
        x: Tensor,
        k: int,
        purpose: str,
        nredo: int | None = None,
        max_points: int | None = None,
        groups: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return cosine_kmeans(
            x,
            k,
            nredo=nredo or self.settings.nredo,
            niter=self.settings.niter,
            seed=derive_seed(self.seed, "discovery", purpose),
            max_points=max_points or self.settings.max_patches,
            groups=groups,
        )

    # --- pass 2 -------------------------------------------------------------------------------------------------

    def _segment(self, segmenter: Segmenter, cache: FeatureCache) -> tuple[SegmentedImages, Segmenter]:
        """Segments all images; drops parts that no image shows after cleaning."""
        while True:
            segmented = self._segment_all(segmenter, cache)
            alive = segmented.present.any(dim=0)
            if not bool(alive[0]) or not bool(alive[1:].any()):
                missing = "background" if not bool(alive[0]) else "foreground"
                raise UserError(
                    f"No image has any {missing} left after cleaning; lower parts.min_cells and "
                    "parts.min_component_size."
                )
            if bool(alive.all()):
                return segmented, segmenter
            self._too_few_parts(int(alive[1:].sum()), "no image shows the others")
            segmenter = Segmenter(
                segmenter.offset,
                segmenter.foreground_centroids,
                segmenter.is_foreground,
                segmenter.part_centroids[alive[1:]],
                segmenter.min_cells,
                segmenter.min_component_size,
            )

    def _segment_all(self, segmenter: Segmenter | CorrectedSegmenter, cache: FeatureCache) -> SegmentedImages:
        return segment_images(
            self.source,
            self.features,
            segmenter,
            batch_size=self.batch_size,
            dtype=storage_dtype(len(self.source), self.settings.max_patches),
            store=self.store,
            progress=self.progress,
            cache=cache,
            patience_s=min(max(self.seconds.get("sample patches", 0.0), 1.0), MOST_PATIENCE_S),
        )

    # --- tier 3 -------------------------------------------------------------------------------------------------

    def _fit_codes(self, segmented: SegmentedImages) -> tuple[list[Tensor], Tensor]:
        codes = torch.full(segmented.present.shape, ABSENT, dtype=torch.long)
        tables: list[Tensor] = []
        num_labels = segmented.present.shape[1]
        for part in range(num_labels):
            images = segmented.present[:, part].nonzero()[:, 0]
            if self.settings.codes == "class" and part > 0:
                labels = self._labels()[images]
                table = class_means(segmented.vectors(part, images), labels, len(self.source.class_names))
            else:
                table, labels = self._cluster_codes(segmented, part, images)
                self._check_codes(part, len(table), len(images))
            tables.append(table)
            codes[images, part] = labels
            self.progress("fit codes", part + 1, num_labels)
        return tables, codes

    def _cluster_codes(self, segmented: SegmentedImages, part: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Fitted on ``max_patches`` images at most, spread evenly; then all are read in pieces."""
        fitted = spread(images, self.settings.max_patches)
        vectors = torch.cat(list(segmented.vectors(part, fitted)))
        table, labels = cluster_codes(
            vectors,
            self.settings.K,
            nredo=self.settings.nredo,
            niter=self.settings.niter,
            seed=derive_seed(self.seed, "discovery", f"codes{part}"),
            max_points=self.settings.max_patches,
        )
        if len(fitted) < len(images):
            table, labels = assign(segmented.vectors(part, images), table)
        return by_size(table, labels)

    def _check_codes(self, part: int, num_codes: int, images: int) -> None:
        if num_codes < self.settings.K and self.settings.on_too_few == "stop":
            raise UserError(
                f"Part {part} has {num_codes} codes instead of {self.settings.K}: {images} images show it. Give "
                f"parts.K={num_codes} or less, or parts.on_too_few=lower."
            )

    # --- the end ------------------------------------------------------------------------------------------------

    def _name(self, segmenter: Segmenter, tables: Sequence[Tensor], report: DiscoveryReport) -> PartDictionary:
        metadata = {
            "num_images": report.num_images,
            "num_patches": report.num_patches,
            "foreground": report.foreground,
            "notes": list(report.notes),  # of codes the report says more, by the names that parts then have
        }
        settings = asdict(self.settings)
        del settings["save_masks"], settings["corrections"]  # decide nothing here
        return PartDictionary(
            names=("background", *self._names(segmenter.num_parts)),
            segmenter=segmenter,
            code_centroids=tuple(tables),
            features_id=self.features.id,
            features_hash=self.features.hash,
            class_names=tuple(self.source.class_names) if self.settings.codes == "class" else None,
            settings=settings | {"names": list(self.settings.names), "seed": self.seed},
            metadata=metadata,
        )

    def _names(self, number: int) -> tuple[str, ...]:
        if len(self.settings.names) == number:
            return self.settings.names
        return tuple(f"part{part}" for part in range(1, number + 1))

    def _labels(self) -> Tensor:
        return torch.tensor([self.source.label(index) for index in range(len(self.source))])

    def _too_few_parts(self, number: int, reason: str) -> None:
        message = f"parts.M={self.settings.M}, but {number} parts were found: {reason}"
        if self.settings.on_too_few == "stop":
            raise UserError(f"{message}. Give parts.M={number}, or parts.on_too_few=lower.")
        self._note(f"{message}; M is lowered.")

    def _note(self, message: str) -> None:
        self.notes.append(message)

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
        return result


def semantic(vectors: Tensor, features: PatchFeatures) -> Tensor:
    """Zeros all but the leading ``semantic_dims`` channels, where the features have such: foreground and parts are
    clustered by what a patch is, not by how it looks. Centroids are zero there too, and so ignore the rest."""
    semantic_dims = getattr(features, "semantic_dims", None)
    if semantic_dims is None:
        return vectors
    return torch.cat([vectors[:, :semantic_dims], torch.zeros_like(vectors[:, semantic_dims:])], dim=1)


def storage_dtype(number: int, most: int) -> torch.dtype:
    """Of the part features: half precision is near enough for codes where there are many images."""
    return torch.float32 if number <= most else torch.float16


def by_size(centroids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Renumbers clusters so that code 0 is the commonest."""
    order = torch.bincount(labels, minlength=len(centroids)).argsort(descending=True, stable=True)
    return centroids[order], order.argsort()[labels]


def class_means(pieces: Iterator[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """(num_classes, D) mean directions of vectors that come in pieces, zeros for a class that never shows the part."""
    table, done = torch.empty(0), 0
    for vectors in pieces:
        if done == 0:
            table = torch.zeros(num_classes, vectors.shape[1])
        table.index_add_(0, labels[done : done + len(vectors)], F.normalize(vectors, dim=1))
        done += len(vectors)
    return F.normalize(table, dim=1)


def with_classes(codes: Tensor, present: Tensor, labels: Tensor) -> Tensor:
    """Replaces the codes of all foreground parts that are present by the image's class."""
    by_class = torch.where(present, labels[:, None], ABSENT)
    return torch.cat([codes[:, :1], by_class[:, 1:]], dim=1)


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
