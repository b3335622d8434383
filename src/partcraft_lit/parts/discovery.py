"""Finds the parts of the objects in a set of images: foreground, then parts, then codes.

Memory is bounded: k-means sees a sample of patches drawn evenly from all images, then a sample of the images that show
a part. What is kept of an image, its label map and one vector per part, lies on disk (``parts.labelling``); in memory
are its codes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.types import ABSENT, ImageSource, PatchFeatures
from partcraft_lit.parts.dictionary import PartDictionary, check_names
from partcraft_lit.parts.foreground import ForegroundChoice, PatchPlaces, choose_foreground
from partcraft_lit.parts.kmeans import all_finite, assign, cosine_kmeans, nearest, spread
from partcraft_lit.parts.labelling import LabelledImages, Progress, label_images
from partcraft_lit.parts.sample import Sample, sample_patches
from partcraft_lit.parts.segmenter import Segmenter
from partcraft_lit.parts.spool import FeatureSpool

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: Tried in this order where the number of foreground clusters is left open.
FOREGROUND_TRIALS = (2, 4, 8, 16, 32)
#: Patches that these trials are fitted on at most.
FOREGROUND_PATCHES = 50_000
#: A larger number has to raise the separation by this factor, since finer clusters fit any rule better.
FOREGROUND_GAIN = 1.02


@dataclass(frozen=True)
class DiscoverySettings:
    """What discovery is asked for; everything that decides its result beside images and features.

    Attributes:
        num_parts: M, foreground parts.
        num_codes: K, codes per part.
        codes: "kmeans", or "class": the class of an image is the code of all its foreground parts.
        names: of the M parts, from the top of the image down; "part1"... if empty.
        seed: of every random choice.
        max_patches: how many patches, over all images, tiers 1 and 2 are fitted on, and how many images of each part
            tier 3 is. Of more images than that, part features are kept in half precision.
        nredo, niter: runs of each k-means and steps of each run.
        foreground_clusters: clusters of tier 1, which are then merged into object and background; "auto" tries several
            and keeps the one that separates best.
        center: subtract the mean feature of the sample before everything else.
        smallest_speck, min_cells: see :class:`Segmenter`.
        on_too_few: what to do where K or M cannot be had: "lower" it and say so, or "stop".
    """

    num_parts: int
    num_codes: int
    codes: Literal["kmeans", "class"] = "kmeans"
    names: tuple[str, ...] = ()
    seed: int = 0
    max_patches: int = 200_000
    nredo: int = 5
    niter: int = 30
    foreground_clusters: int | Literal["auto"] = "auto"
    center: bool = False
    smallest_speck: int = 2
    min_cells: int = 1
    on_too_few: Literal["lower", "stop"] = "lower"

    def __post_init__(self) -> None:
        for name, least in (("num_parts", 1), ("num_codes", 1), ("nredo", 1), ("niter", 1), ("min_cells", 1)):
            value = getattr(self, name)
            if value < least:
                key = {"num_parts": "M", "num_codes": "K"}.get(name, name)
                raise UserError(f"parts.{key}={value} is too few: at least {least} is needed.")
        if self.num_parts > 254:
            raise UserError(f"parts.M={self.num_parts} is too many: label maps hold 254 parts at most.")
        for name, known in (("codes", ("kmeans", "class")), ("on_too_few", ("lower", "stop"))):
            if getattr(self, name) not in known:
                raise UserError(
                    f"parts.{name}={getattr(self, name)!r} is unknown. {did_you_mean(getattr(self, name), known)}"
                )
        if self.foreground_clusters != "auto" and (
            isinstance(self.foreground_clusters, str) or self.foreground_clusters < 2
        ):
            raise UserError(
                f"parts.foreground_clusters={self.foreground_clusters!r}: give 'auto' or a number of at least 2."
            )
        if self.max_patches < 100 * self.num_parts:
            raise UserError(
                f"parts.max_patches={self.max_patches} is too few to find {self.num_parts} parts; give at least "
                f"{100 * self.num_parts}, better the default."
            )
        if self.names and len(self.names) != self.num_parts:
            raise UserError(
                f"parts.names has {len(self.names)} names for parts.M={self.num_parts} parts; give one each."
            )
        check_names(self.names)


@dataclass
class DiscoveryReport:
    """What a person wants to know about a discovery.

    Attributes:
        num_images, num_patches: images, and patches in the sample.
        foreground: the rule's choice: confidence 0...1, share of the area, evidence of every cluster.
        parts: per part, the background first: name, images that show it, share of all cells, codes, mean cosine of its
            images to their code's centroid.
        notes: what was not as asked for, in sentences.
        seconds: per stage.
        from_store: nothing was fitted, an equal discovery was stored.
    """

    num_images: int
    num_patches: int
    foreground: dict[str, Any]
    parts: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    from_store: bool = False

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Discovery:
    """Parts of all images of a source, in its order.

    Attributes:
        dictionary: what to read further images with.
        label_maps: one (grid height, grid width) uint8 map per image, 0...M, over the whole image (its centre, if it is
            longer than 3:1: ``images.clamp_aspect``), read from a temporary file.
        codes: (N, M + 1) int64, ``ABSENT`` where a part is absent.
        part_features: (N, M + 1, D), zeros where absent; mapped from a temporary file.
        report: numbers and notes.
    """

    dictionary: PartDictionary
    label_maps: Sequence[Tensor]
    codes: Tensor
    part_features: Tensor
    report: DiscoveryReport


def discover(
    source: ImageSource,
    features: PatchFeatures,
    *,
    num_parts: int,
    num_codes: int,
    batch_size: int = 32,
    spool_bytes: int = 2 << 30,
    store: Store | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Discovery:
    """Finds parts in the images of ``source``.

    Args:
        source: the images.
        features: describes their patches.
        num_parts: M, foreground parts.
        num_codes: K, codes per part.
        batch_size: images given to ``features`` at once.
        spool_bytes: features of the first pass that may wait in a temporary file for the second; the others are
            computed twice.
        store: keeps dictionaries and label maps; equal questions are answered from it.
        progress: told how far each stage is.
        settings: all further fields of :class:`DiscoverySettings`.

    Returns:
        Equal for equal arguments, bit by bit on one machine.

    Raises:
        UserError: for settings that cannot work with these images.

    Source: PartCraft's three tiers. Differs: fitted on all images instead of 100; the foreground is chosen by rule;
    tier 2 sees foreground patches only, so no constant vector takes a cluster; tier 3 sees only images that show the
    part.
    """
    wanted = DiscoverySettings(num_parts=num_parts, num_codes=num_codes, **settings)
    return _Run(source, features, wanted, batch_size, spool_bytes, store, progress or _silent).discover()


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
    with FeatureSpool(0) as spool:
        found = label_images(
            source,
            features,
            dictionary.segmenter,
            batch_size=batch_size,
            dtype=_kept_as(len(source), int(dictionary.settings.get("max_patches", len(source)))),
            store=store,
            progress=progress or _silent,
            spool=spool,
        )
    return found.label_maps, found.read_codes(dictionary), found.part_features


def _silent(stage: str, done: int, total: int) -> None:
    """The progress report that nobody reads."""


class _Run:
    """One discovery: its inputs, and the notes and times that gather on the way."""

    def __init__(
        self,
        source: ImageSource,
        features: PatchFeatures,
        settings: DiscoverySettings,
        batch_size: int,
        spool_bytes: int,
        store: Store | None,
        progress: Progress,
    ) -> None:
        self.source = source
        self.features = features
        self.settings = settings
        self.batch_size = batch_size
        self.spool_bytes = spool_bytes
        self.store = store
        self.progress = progress
        self.notes: list[str] = []
        self.seconds: dict[str, float] = {}

    def discover(self) -> Discovery:
        self._check_source()
        known = self._recall()
        if known is not None:
            return self._answer_from_store(known)
        with FeatureSpool(self.spool_bytes) as spool:
            segmenter, report = self._fit_sample(spool)
            found, segmenter = self._timed("label images", lambda: self._label_images(segmenter, spool))
        tables, codes = self._timed("fit codes", lambda: self._fit_codes(found))
        dictionary = self._name(segmenter, tables, report)
        report.parts = found.describe(dictionary, codes)
        report.seconds = self.seconds
        self._remember(dictionary)
        return Discovery(dictionary, found.label_maps, codes, found.part_features, report)

    def _fit_sample(self, spool: FeatureSpool) -> tuple[Segmenter, DiscoveryReport]:
        """Tiers 1 and 2. The sample is forgotten at its end."""
        sample = self._timed("sample patches", lambda: self._sample_patches(spool))
        segmenter, choice = self._timed("fit foreground and parts", lambda: self._fit_segmenter(sample))
        return segmenter, DiscoveryReport(
            num_images=len(self.source), num_patches=len(sample.features), foreground=choice.as_dict(), notes=self.notes
        )

    # --- before anything expensive ------------------------------------------------------------------------------

    def _check_source(self) -> None:
        number, wanted = len(self.source), self.settings.num_codes
        if number == 0:
            raise UserError("There are no images to discover parts in.")
        if self.settings.codes == "class":
            self._check_labels()
            return
        if number < wanted:
            message = f"parts.K={wanted} codes per part cannot be told apart in {number} images"
            if self.settings.on_too_few == "stop":
                raise UserError(f"{message}. Give parts.K={max(number // 4, 1)} or less, or parts.on_too_few=lower.")
            self._note(f"{message}; K is lowered to the number of images that show a part, at most {number}.")

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
        # names may change without a new fit
        settings = {name: value for name, value in asdict(self.settings).items() if name not in ("names", "on_too_few")}
        images = [self.source.content_hash(index) for index in range(len(self.source))]
        labels = [self.source.label(index) for index in range(len(images))] if self.settings.codes == "class" else []
        return stable_hash("dictionary", 2, settings, self.features.hash, images, labels)

    def _recall(self) -> PartDictionary | None:
        entry = self.store.get("dictionary", self._key()) if self.store is not None else None
        if entry is None:
            return None
        try:
            dictionary = PartDictionary.from_bytes(_as_bytes(entry["tensors"]), _as_bytes(entry["json"]).decode())
        except (ValueError, KeyError, TypeError) as error:
            logger.warning("A stored part dictionary cannot be read and is fitted again: %s", error)
            return None
        lowered = dictionary.num_parts < self.settings.num_parts
        return None if lowered and self.settings.on_too_few == "stop" else dictionary

    def _remember(self, dictionary: PartDictionary) -> None:
        if self.store is None:
            return
        tensors, description = dictionary.to_bytes()
        self.store.put(
            "dictionary", self._key(), {"tensors": _as_tensor(tensors), "json": _as_tensor(description.encode())}
        )

    def _answer_from_store(self, known: PartDictionary) -> Discovery:
        dictionary = known.renamed(self._names(known.num_parts))
        with FeatureSpool(0) as spool:
            found = self._timed("label images", lambda: self._label_all(dictionary.segmenter, spool))
        codes = found.read_codes(dictionary)
        if self.settings.codes == "class":
            codes = _with_classes(codes, found.present, self._labels())
        facts = dictionary.facts
        report = DiscoveryReport(
            num_images=len(self.source),
            num_patches=int(facts["num_patches"]),
            foreground=dict(facts["foreground"]),
            parts=found.describe(dictionary, codes),
            notes=list(facts["notes"]),
            seconds=self.seconds,
            from_store=True,
        )
        return Discovery(dictionary, found.label_maps, codes, found.part_features, report)

    # --- pass 1 -------------------------------------------------------------------------------------------------

    def _sample_patches(self, spool: FeatureSpool) -> Sample:
        sample = sample_patches(
            self.source,
            self.features,
            seed=self.settings.seed,
            max_patches=self.settings.max_patches,
            batch_size=self.batch_size,
            spool=spool,
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
        directions = _kinds(sample.features.sub_(offset), self.features)
        F.normalize(directions, dim=1, out=directions)
        if not bool((directions.norm(dim=1) > 0.5).any()):
            raise UserError("All patches of all images look the same, so there are no parts to find.")
        centroids, choice = self._fit_foreground(directions, sample.places)
        foreground = choice.is_foreground[nearest(directions, centroids)]
        images = sample.places.image[foreground]
        parts, labels = self._kmeans(directions[foreground], self.settings.num_parts, "parts", groups=images)
        if len(parts) < self.settings.num_parts:
            self._too_few_parts(len(parts), f"the foreground has {len(parts)} distinct kinds of patches only")
        rows = sample.places.rows[foreground]
        height = torch.zeros(len(parts)).index_add_(0, labels, rows) / torch.bincount(labels)
        order = height.argsort(stable=True)  # from the top of the image down, so that numbers mean something
        segmenter = Segmenter(
            offset, centroids, choice.is_foreground, parts[order], self.settings.min_cells, self.settings.smallest_speck
        )
        return segmenter, choice

    def _fit_foreground(self, directions: Tensor, places: PatchPlaces) -> tuple[Tensor, ForegroundChoice]:
        wanted = self.settings.foreground_clusters
        best: tuple[Tensor, ForegroundChoice] | None = None
        for number in FOREGROUND_TRIALS if wanted == "auto" else (wanted,):
            nredo = 1 if number > 8 else None  # of many clusters a few poor ones do no harm
            centroids, labels = self._kmeans(directions, number, f"foreground{number}", nredo, FOREGROUND_PATCHES)
            choice = choose_foreground(labels, places, len(centroids))
            if best is None or choice.separation > FOREGROUND_GAIN * best[1].separation:
                best = centroids, choice
        assert best is not None
        if best[1].is_foreground.all():
            raise UserError("All patches of all images look the same, so object and background cannot be told apart.")
        if best[1].confidence < 0.2:
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
            seed=derive_seed(self.settings.seed, "discovery", purpose),
            max_points=max_points or self.settings.max_patches,
            groups=groups,
        )

    # --- pass 2 -------------------------------------------------------------------------------------------------

    def _label_images(self, segmenter: Segmenter, spool: FeatureSpool) -> tuple[LabelledImages, Segmenter]:
        """Labels all images; parts that no image shows after cleaning are taken out of the dictionary."""
        while True:
            found = self._label_all(segmenter, spool)
            alive = found.present.any(dim=0)
            if not bool(alive[0]) or not bool(alive[1:].any()):
                missing = "background" if not bool(alive[0]) else "foreground"
                raise UserError(
                    f"No image has any {missing} left after cleaning; lower parts.min_cells and parts.smallest_speck."
                )
            if bool(alive.all()):
                return found, segmenter
            self._too_few_parts(int(alive[1:].sum()), "no image shows the others")
            segmenter = Segmenter(
                segmenter.offset,
                segmenter.foreground_centroids,
                segmenter.is_foreground,
                segmenter.part_centroids[alive[1:]],
                segmenter.min_cells,
                segmenter.smallest_speck,
            )

    def _label_all(self, segmenter: Segmenter, spool: FeatureSpool) -> LabelledImages:
        return label_images(
            self.source,
            self.features,
            segmenter,
            batch_size=self.batch_size,
            dtype=_kept_as(len(self.source), self.settings.max_patches),
            store=self.store,
            progress=self.progress,
            spool=spool,
        )

    # --- tier 3 -------------------------------------------------------------------------------------------------

    def _fit_codes(self, found: LabelledImages) -> tuple[list[Tensor], Tensor]:
        codes = torch.full(found.present.shape, ABSENT, dtype=torch.long)
        tables: list[Tensor] = []
        num_labels = found.present.shape[1]
        for part in range(num_labels):
            images = found.present[:, part].nonzero()[:, 0]
            if self.settings.codes == "class" and part > 0:
                labels = self._labels()[images]
                table = _class_means(found.vectors(part, images), labels, len(self.source.class_names))
            else:
                table, labels = self._cluster_codes(found, part, images)
                self._note_codes(part, len(table), len(images))
            tables.append(table)
            codes[images, part] = labels
            self.progress("fit codes", part + 1, num_labels)
        return tables, codes

    def _cluster_codes(self, found: LabelledImages, part: int, images: Tensor) -> tuple[Tensor, Tensor]:
        """Fitted on ``max_patches`` images at most, spread evenly; then all are read in pieces."""
        fitted = spread(images, self.settings.max_patches)
        table, labels = self._kmeans(
            torch.cat(list(found.vectors(part, fitted))), self.settings.num_codes, f"codes{part}"
        )
        if len(fitted) < len(images):
            table, labels = assign(found.vectors(part, images), table)
        return _by_size(table, labels)

    def _note_codes(self, part: int, found: int, images: int) -> None:
        wanted = self.settings.num_codes
        if found == wanted:
            return
        message = f"Part {part} has {found} codes instead of {wanted}: {images} images show it"
        if self.settings.on_too_few == "stop":
            raise UserError(f"{message}. Give parts.K={found} or less, or parts.on_too_few=lower.")
        self._note(f"{message}.")

    # --- the end ------------------------------------------------------------------------------------------------

    def _name(self, segmenter: Segmenter, tables: Sequence[Tensor], report: DiscoveryReport) -> PartDictionary:
        facts = {
            "num_images": report.num_images,
            "num_patches": report.num_patches,
            "foreground": report.foreground,
            "notes": report.notes,
        }
        return PartDictionary(
            names=("background", *self._names(segmenter.num_parts)),
            segmenter=segmenter,
            code_centroids=tuple(tables),
            features_id=self.features.id,
            features_hash=self.features.hash,
            class_names=tuple(self.source.class_names) if self.settings.codes == "class" else None,
            settings=asdict(self.settings) | {"names": list(self.settings.names)},
            facts=facts,
        )

    def _names(self, number: int) -> tuple[str, ...]:
        if len(self.settings.names) == number:
            return self.settings.names
        return tuple(f"part{part}" for part in range(1, number + 1))

    def _labels(self) -> Tensor:
        return torch.tensor([self.source.label(index) for index in range(len(self.source))])

    def _too_few_parts(self, found: int, reason: str) -> None:
        message = f"parts.M={self.settings.num_parts}, but {found} parts were found: {reason}"
        if self.settings.on_too_few == "stop":
            raise UserError(f"{message}. Give parts.M={found}, or parts.on_too_few=lower.")
        self._note(f"{message}; M is lowered.")

    def _note(self, message: str) -> None:
        self.notes.append(message)
        logger.warning(message)

    def _timed(self, stage: str, work: Callable[[], T]) -> T:
        start = time.perf_counter()
        result = work()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + time.perf_counter() - start, 3)
        return result


def _kinds(vectors: Tensor, features: PatchFeatures) -> Tensor:
    """Features that know which of their numbers say what a place is, and not how it looks, name these in ``kind_dims``:
    foreground and parts are found by them alone. A centroid of zeros elsewhere ignores the rest."""
    kind_dims = getattr(features, "kind_dims", None)
    if kind_dims is None:
        return vectors
    return torch.cat([vectors[:, :kind_dims], torch.zeros_like(vectors[:, kind_dims:])], dim=1)


def _kept_as(number: int, most: int) -> torch.dtype:
    """Type of the part features of so many images: half is near enough for codes, and small sets need not save."""
    return torch.float32 if number <= most else torch.float16


def _by_size(centroids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Renumbers clusters so that code 0 is the commonest."""
    order = torch.bincount(labels, minlength=len(centroids)).argsort(descending=True, stable=True)
    return centroids[order], order.argsort()[labels]


def _class_means(pieces: Iterator[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """(num_classes, D) mean directions of vectors that come in pieces, zeros for a class that never shows the part."""
    table, done = torch.empty(0), 0
    for vectors in pieces:
        if done == 0:
            table = torch.zeros(num_classes, vectors.shape[1])
        table.index_add_(0, labels[done : done + len(vectors)], F.normalize(vectors, dim=1))
        done += len(vectors)
    return F.normalize(table, dim=1)


def _with_classes(codes: Tensor, present: Tensor, labels: Tensor) -> Tensor:
    """Replaces the codes of all foreground parts that are present by the image's class."""
    by_class = torch.where(present, labels[:, None], ABSENT)
    return torch.cat([codes[:, :1], by_class[:, 1:]], dim=1)


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
