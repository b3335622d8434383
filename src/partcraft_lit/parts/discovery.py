"""Finds the parts of the objects in a set of images: foreground, then parts, then codes.

Memory is bounded: k-means sees a sample of patches drawn evenly from all images, and what is kept of an image is its
label map and one vector per part.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.errors import UserError, did_you_mean
from partcraft_lit.images import clamp_aspect
from partcraft_lit.parts.dictionary import PartDictionary, check_names
from partcraft_lit.parts.foreground import ForegroundChoice, PatchPlaces, choose_foreground
from partcraft_lit.parts.kmeans import cosine_kmeans, nearest
from partcraft_lit.parts.predictor import present_parts
from partcraft_lit.parts.segmenter import Segmenter
from partcraft_lit.parts.spool import FeatureSpool
from partcraft_lit.randomness import derive_seed, torch_generator
from partcraft_lit.store import Store, stable_hash
from partcraft_lit.types import ABSENT, ImageSource, PatchFeatures

T = TypeVar("T")

logger = logging.getLogger(__name__)

#: (stage, done, of how many)
Progress = Callable[[str, int, int], None]
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
        max_patches: how many patches, over all images, tiers 1 and 2 are fitted on.
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
            longer than 3:1: ``images.clamp_aspect``).
        codes: (N, M + 1) int64, ``ABSENT`` where a part is absent.
        part_features: (N, M + 1, D), zeros where absent.
        report: numbers and notes.
    """

    dictionary: PartDictionary
    label_maps: list[Tensor]
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
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Reads the parts of images with a dictionary that exists, for instance after images were added.

    Returns:
        label maps, codes (N, M + 1) by nearest centroid, part features (N, M + 1, D); as in :class:`Discovery`.
    """
    with FeatureSpool(0) as spool:
        label_maps, part_features, present = _segment_all(
            source, features, dictionary.segmenter, batch_size, store, progress or _silent, spool
        )
    return label_maps, dictionary.read_codes(part_features, present), part_features


def _silent(stage: str, done: int, total: int) -> None:
    """The progress report that nobody reads."""


@dataclass(frozen=True)
class _Sample:
    """Patches drawn from all images: (P, D) features and their places."""

    features: Tensor
    places: PatchPlaces


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
            sample = self._timed("sample patches", lambda: self._sample_patches(spool))
            segmenter, choice = self._timed("fit foreground and parts", lambda: self._fit_segmenter(sample))
            label_maps, part_features, present, segmenter = self._timed(
                "label images", lambda: self._label_images(segmenter, spool)
            )
        tables, codes = self._timed("fit codes", lambda: self._fit_codes(part_features, present))
        report = DiscoveryReport(
            num_images=len(self.source), num_patches=len(sample.features), foreground=choice.as_dict(), notes=self.notes
        )
        dictionary = self._name(segmenter, tables, report)
        report.parts = describe_parts(dictionary, label_maps, codes, part_features)
        report.seconds = self.seconds
        self._remember(dictionary)
        return Discovery(dictionary, label_maps, codes, part_features, report)

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
            label_maps, part_features, present = self._timed(
                "label images", lambda: self._segment_all(dictionary.segmenter, spool)
            )
        codes = dictionary.read_codes(part_features, present)
        if self.settings.codes == "class":
            codes = _with_classes(codes, present, self._labels())
        facts = dictionary.facts
        report = DiscoveryReport(
            num_images=len(self.source),
            num_patches=int(facts["num_patches"]),
            foreground=dict(facts["foreground"]),
            parts=describe_parts(dictionary, label_maps, codes, part_features),
            notes=list(facts["notes"]),
            seconds=self.seconds,
            from_store=True,
        )
        return Discovery(dictionary, label_maps, codes, part_features, report)

    # --- pass 1 -------------------------------------------------------------------------------------------------

    def _sample_patches(self, spool: FeatureSpool) -> _Sample:
        """The same number of patches of every image, drawn by (seed, image) alone."""
        chosen = self._sampled_images()
        quota = max(self.settings.max_patches // len(chosen), 1)
        parts: list[Tensor] = []
        places: list[PatchPlaces] = []
        grids = _features_of(self.source, self.features, chosen, self.batch_size)
        for done, (index, grid) in enumerate(grids, start=1):
            spool.put(index, grid)
            generator = torch_generator(self.settings.seed, "patches", index)
            kept = torch.randperm(grid.shape[0] * grid.shape[1], generator=generator)[:quota].sort().values
            parts.append(grid.flatten(0, 1)[kept].float())
            pixels = clamp_aspect(self.source.image(index))
            places.append(PatchPlaces.of_grid(grid.shape[0], grid.shape[1], index, pixels).select(kept))
            self.progress("sample patches", done, len(chosen))
        sample = _Sample(torch.cat(parts), PatchPlaces.concatenate(places))
        if not bool(torch.isfinite(sample.features).all()):
            raise UserError(f"Features {self.features.id!r} hold NaN or infinite values; use float32 weights.")
        return sample

    def _sampled_images(self) -> list[int]:
        """All images; where there are more than patches wanted, as many, spread evenly."""
        number, most = len(self.source), self.settings.max_patches
        return list(range(number)) if number <= most else [index * number // most for index in range(most)]

    # --- tiers 1 and 2 ------------------------------------------------------------------------------------------

    def _fit_segmenter(self, sample: _Sample) -> tuple[Segmenter, ForegroundChoice]:
        dim = sample.features.shape[1]
        offset = sample.features.mean(dim=0) if self.settings.center else torch.zeros(dim)
        directions = F.normalize(_kinds(sample.features - offset, self.features), dim=1)
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

    def _label_images(
        self, segmenter: Segmenter, spool: FeatureSpool
    ) -> tuple[list[Tensor], Tensor, Tensor, Segmenter]:
        """Labels all images; parts that no image shows after cleaning are taken out of the dictionary."""
        while True:
            label_maps, part_features, present = self._segment_all(segmenter, spool)
            alive = present.any(dim=0)
            if not bool(alive[0]) or not bool(alive[1:].any()):
                missing = "background" if not bool(alive[0]) else "foreground"
                raise UserError(
                    f"No image has any {missing} left after cleaning; lower parts.min_cells and parts.smallest_speck."
                )
            if bool(alive.all()):
                return label_maps, part_features, present, segmenter
            self._too_few_parts(int(alive[1:].sum()), "no image shows the others")
            segmenter = Segmenter(
                segmenter.offset,
                segmenter.foreground_centroids,
                segmenter.is_foreground,
                segmenter.part_centroids[alive[1:]],
                segmenter.min_cells,
                segmenter.smallest_speck,
            )

    def _segment_all(self, segmenter: Segmenter, spool: FeatureSpool) -> tuple[list[Tensor], Tensor, Tensor]:
        return _segment_all(self.source, self.features, segmenter, self.batch_size, self.store, self.progress, spool)

    # --- tier 3 -------------------------------------------------------------------------------------------------

    def _fit_codes(self, part_features: Tensor, present: Tensor) -> tuple[list[Tensor], Tensor]:
        codes = torch.full(present.shape, ABSENT, dtype=torch.long)
        tables: list[Tensor] = []
        by_class = self.settings.codes == "class"
        for part in range(present.shape[1]):
            rows = present[:, part]
            vectors = part_features[rows, part]
            if by_class and part > 0:
                table, labels = _class_means(vectors, self._labels()[rows], len(self.source.class_names))
            else:
                table, labels = _by_size(*self._kmeans(vectors, self.settings.num_codes, f"codes{part}"))
                self._note_codes(part, len(table), int(rows.sum()))
            tables.append(table)
            codes[rows, part] = labels
            self.progress("fit codes", part + 1, present.shape[1])
        return tables, codes

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


def _features_of(
    source: ImageSource, features: PatchFeatures, indices: Sequence[int], batch_size: int
) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(indices), batch_size):
        batch = indices[start : start + batch_size]
        yield from zip(batch, features([source.image(index) for index in batch]), strict=True)


def _segment_all(
    source: ImageSource,
    features: PatchFeatures,
    segmenter: Segmenter,
    batch_size: int,
    store: Store | None,
    progress: Progress,
    spool: FeatureSpool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Label maps, part features (N, M + 1, D) and presence (N, M + 1) of all images."""

    def compute(indices: list[int]) -> Iterable[dict[str, Tensor]]:
        spooled = {index: grid for index in indices if (grid := spool.get(index)) is not None}
        others = [index for index in indices if index not in spooled]
        grids = spooled | dict(_features_of(source, features, others, batch_size))
        for index in indices:
            label_map = segmenter.label(grids[index])
            yield {"label_map": label_map, "part_features": segmenter.describe(grids[index], label_map)}

    number = len(source)
    entries: list[dict[str, Tensor]] = [{}] * number
    if store is None:
        for start in range(0, number, batch_size):
            batch = list(range(start, min(start + batch_size, number)))
            entries[batch[0] : batch[-1] + 1] = compute(batch)
            progress("label images", batch[-1] + 1, number)
    else:
        keys = [stable_hash(source.content_hash(index), features.hash, segmenter.hash) for index in range(number)]
        entries = store.get_or_compute_many(
            "parts", keys, compute, batch_size, lambda done, total: progress("label images", done, total)
        )
    label_maps = [entry["label_map"] for entry in entries]
    present = torch.stack([present_parts(label_map, segmenter.num_parts + 1) for label_map in label_maps])
    return label_maps, torch.stack([entry["part_features"] for entry in entries]), present


def _by_size(centroids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Renumbers clusters so that code 0 is the commonest."""
    order = torch.bincount(labels, minlength=len(centroids)).argsort(descending=True, stable=True)
    return centroids[order], order.argsort()[labels]


def _class_means(vectors: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """(num_classes, D) mean directions, zeros for a class that never shows the part, and the labels as codes."""
    table = torch.zeros(num_classes, vectors.shape[1]).index_add_(0, labels, F.normalize(vectors, dim=1))
    return F.normalize(table, dim=1), labels


def _with_classes(codes: Tensor, present: Tensor, labels: Tensor) -> Tensor:
    """Replaces the codes of all foreground parts that are present by the image's class."""
    by_class = torch.where(present, labels[:, None], ABSENT)
    return torch.cat([codes[:, :1], by_class[:, 1:]], dim=1)


def describe_parts(
    dictionary: PartDictionary, label_maps: Sequence[Tensor], codes: Tensor, part_features: Tensor
) -> list[dict[str, Any]]:
    parts = dictionary.num_parts + 1
    share = torch.stack([_shares(label_map, parts) for label_map in label_maps]).mean(dim=0)
    similarity = F.cosine_similarity(part_features, dictionary.centroids(codes), dim=2)  # (N, M + 1)
    present = codes != ABSENT
    return [
        {
            "name": dictionary.names[part],
            "images": int(present[:, part].sum()),
            "share": round(float(share[part]), 4),
            "codes": dictionary.num_codes(part),
            "similarity": round(float(similarity[present[:, part], part].mean()), 4),
        }
        for part in range(parts)
    ]


def _shares(label_map: Tensor, num_labels: int) -> Tensor:
    return torch.bincount(label_map.flatten().long(), minlength=num_labels) / label_map.numel()


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
