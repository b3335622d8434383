"""Applies corrections to a dictionary and to all images; no feature is computed again, except inside split parts."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.images import kept_window
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import ABSENT, BACKGROUND, ImageSource, PatchFeatures
from partcraft_lit.parts.corrected import CorrectedSegmenter, Move
from partcraft_lit.parts.corrections import Corrections, MovedRegion, Plan, name_codes, resolve, untrained_codes
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import (
    Discovery,
    DiscoveryReport,
    by_size,
    class_means,
    semantic,
    storage_dtype,
    with_classes,
)
from partcraft_lit.parts.kmeans import cluster_codes, cosine_kmeans, nearest, spread
from partcraft_lit.parts.on_disk import FeatureCache
from partcraft_lit.parts.segmentation import (
    CellDirections,
    Progress,
    SegmentedImages,
    correct_images,
    segment_images,
    silent,
)
from partcraft_lit.parts.settings import PartsSettings

logger = logging.getLogger(__name__)

#: Pieces of another split of the same part are the same piece above this cosine.
SAME_PIECE = 0.9


def apply_corrections(
    corrections: Corrections,
    base: PartDictionary,
    source: ImageSource,
    features: PatchFeatures,
    settings: PartsSettings,
    *,
    seed: int,
    applied: Sequence[PartDictionary] = (),
    batch_size: int = 32,
    store: Store | None = None,
    progress: Progress | None = None,
) -> Discovery:
    """Reads all images with a dictionary and corrections of it.

    Args:
        corrections: of the parts of ``base``.
        base: as discovery has made it.
        source: the images; they may be others than those of the discovery.
        features: that the base lives in.
        settings: K and the rest of k-means, for pieces that are split off.
        seed: of their k-means.
        applied: dictionaries that came out of corrections of this base before, the newest first: what is the same
            again keeps its centroids, codes and numbers.
        batch_size: images given to ``features`` at once.
        store: where label maps and part features are taken from.
        progress: called with stage, done and total.

    Returns:
        as ``discovery.discover``.

    Raises:
        UserError: as ``corrections.resolve``; for an image that is not there, other features, or a number of parts or
            codes that the base was not made with.
    """
    _check(base, features, settings)
    return _Correcting(
        corrections, base, source, features, settings, seed, applied, batch_size, store, progress or silent
    ).apply()


def _check(base: PartDictionary, features: PatchFeatures, settings: PartsSettings) -> None:
    if features.hash != base.features_hash:
        raise UserError(
            f"parts.corrections: the parts that are kept live in the features {base.features_id!r}, but these are "
            f"{features.id!r}. Use parts.features={base.features_id}, or discover without them: parts.corrections=null."
        )
    for key in ("M", "K", "codes"):
        made, wanted = base.settings.get(key), getattr(settings, key)
        if made is not None and made != wanted:
            raise UserError(
                f"parts.corrections: the parts that are kept were made with parts.{key}={made}, and now it is "
                f"{wanted}. Use parts.{key}={made}, or discover anew: parts.corrections=null."
            )


class _Correcting:
    """One application: its inputs and what is read in its course."""

    def __init__(
        self,
        corrections: Corrections,
        base: PartDictionary,
        source: ImageSource,
        features: PatchFeatures,
        settings: PartsSettings,
        seed: int,
        applied: Sequence[PartDictionary],
        batch_size: int,
        store: Store | None,
        progress: Progress,
    ) -> None:
        named = settings.names if len(settings.names) == base.num_parts else base.names[1:]
        self.corrections, self.base = corrections, base.renamed(named)
        self.source, self.features, self.settings, self.seed = source, features, settings, seed
        self.applied = [one for one in applied if one.metadata.get("base") == base.hash]
        self.batch_size, self.store, self.progress = batch_size, store, progress
        self.by_class = settings.codes == "class"

    def apply(self) -> Discovery:
        moved = {move.image for move in self.corrections.move}
        self._check_images(moved)
        first = resolve(self.corrections, self.base.names)
        free = max([self.base.num_parts, *(one.num_parts for one in self.applied)]) + 1
        with FeatureCache(0) as cache:
            segmented = segment_images(
                self.source,
                self.features,
                self.base.base_segmenter,
                batch_size=self.batch_size,
                dtype=storage_dtype(len(self.source), self.settings.max_patches),
                store=self.store,
                progress=self.progress,
                cache=cache,
            )
        if first.only_names and free == len(first.names):
            return self._discovery(replace(self.base, names=first.names), segmented, first)
        cells = CellDirections(
            self.source, self.features, self.base.base_segmenter, segmented.label_maps, self.batch_size, self.store
        )
        tables = {label: self._pieces(label, number, segmented, cells) for label, number in first.splits.items()}
        piece_ids = self._piece_ids(tables)
        plan = resolve(self.corrections, self.base.names, piece_ids, free)
        segmenter = CorrectedSegmenter(
            base=self.base.base_segmenter,
            num_parts=len(plan.names) - 1,
            owners=plan.owners,
            splits=tables,
        )
        unmoved = correct_images(self.source, segmenter, segmented, cells, self.progress)
        codes = [self._table(part, segmenter, segmented, unmoved) for part in range(len(plan.names))]
        if plan.moves:
            segmenter = replace(segmenter, moves=tuple(self._move(move) for move in plan.moves))
            corrected = correct_images(self.source, segmenter, segmented, cells, self.progress)
        else:
            corrected = unmoved
        dictionary = PartDictionary(
            names=plan.names,
            segmenter=segmenter,
            code_centroids=tuple(codes),
            features_id=self.base.features_id,
            features_hash=self.base.features_hash,
            class_names=self.base.class_names,
            settings=self.base.settings,
            metadata={
                **self.base.metadata,
                "base": self.base.hash,
                "base_codes": list(self.base.codes_per_part),
                "retired": {str(part): reason for part, reason in plan.retired.items()},
                "pieces": self._numbered(plan),
            },
        )
        return self._discovery(dictionary, corrected, plan)

    def _check_images(self, names: set[str]) -> None:
        """Raises a UserError for an image that the data set does not have."""
        if not names:
            return
        known = {self.source.name(index) for index in range(len(self.source))}
        for name in sorted(names - known):
            raise UserError(
                f"parts.yaml: move names the image {name!r}, which is not in the data set. {did_you_mean(name, known)}"
            )

    # Pieces of split parts.

    def _pieces(self, label: int, number: int, segmented: SegmentedImages, cells: CellDirections) -> Tensor:
        """(number, D) centroids inside a part, the one with most cells first; those of before where it was so split."""
        for one in self.applied:
            table = _splits(one).get(label)
            if table is not None and len(table) == number:
                return table
        name = self.base.names[label]
        images = segmented.present[:, label].nonzero()[:, 0]
        if len(images) == 0:
            raise UserError(f"parts.yaml: split names part {label} ({name}), and no image shows it.")
        counts = torch.tensor([int((segmented.label_maps[index] == label).sum()) for index in images.tolist()])
        most = max(1, len(images) * self.settings.max_patches // int(counts.sum()))
        chosen = spread(torch.arange(len(images)), most)
        cells.fill(label, images[chosen].tolist(), self.progress)
        points = torch.cat([cells(index, label).float() for index in images[chosen].tolist()])
        table, labels = cosine_kmeans(
            semantic(points, self.features),
            number,
            nredo=self.settings.nredo,
            niter=self.settings.niter,
            seed=derive_seed(self.seed, "split", label, number),
            max_points=self.settings.max_patches,
            groups=images[chosen].repeat_interleave(counts[chosen]),
        )
        if len(table) < number:
            raise UserError(
                f"parts.yaml: part {label} ({name}) cannot be split into {number}: it has {len(table)} distinct kinds "
                "of cells."
            )
        return by_size(table, labels)[0]

    def _piece_ids(self, tables: dict[int, Tensor]) -> dict[tuple[int, int], int]:
        """(label, piece) -> number that it had before: of the same split, else of the most similar piece of another."""
        ids: dict[tuple[int, int], int] = {}
        for label, table in tables.items():
            for one in self.applied:
                former = _splits(one).get(label)
                if former is None:
                    continue
                numbers = {piece: number for own, piece, number in one.metadata.get("pieces", []) if own == label}
                similarity = (table[1:] @ former[1:].T).numpy()
                for row, column in zip(*linear_sum_assignment(-similarity), strict=True):
                    if similarity[row, column] > SAME_PIECE:
                        ids[label, int(row) + 1] = numbers[int(column) + 1]
                break
        return ids

    def _numbered(self, plan: Plan) -> list[list[int]]:
        """Label, piece and number of each piece, before merging."""
        return [[label, piece, number] for (label, piece), number in plan.piece_ids.items()]

    # Codes.

    def _table(
        self, part: int, segmenter: CorrectedSegmenter, before: SegmentedImages, after: SegmentedImages
    ) -> Tensor:
        """(K_m, D) centroids of the codes of a part."""
        sources = segmenter.sources(part)
        if not sources:
            return torch.empty(0, self.base.dim)
        for one in (*self.applied, self.base):
            if _same_part(one, part, sources, segmenter):
                return one.code_centroids[part]
        images = after.present[:, part].nonzero()[:, 0]
        if len(images) == 0:
            raise UserError(f"parts.yaml: no image would show part {part} any more. Drop it, or correct it otherwise.")
        if self.by_class and part != BACKGROUND:
            labels = torch.tensor([self.source.label(index) for index in images.tolist()])
            return class_means(after.vectors(part, images), labels, len(self.source.class_names))
        if part <= self.base.num_parts:
            both = images[before.present[images, part]]
            former = self.base.code_centroids[part]
            return _inherited(former, zip(before.vectors(part, both), after.vectors(part, both), strict=True))
        for one in self.applied:
            if part <= one.num_parts and one.num_codes(part):
                return _inherited(one.code_centroids[part], ((v, v) for v in after.vectors(part, images)))
        fitted = spread(images, self.settings.max_patches)
        table, labels = cluster_codes(
            torch.cat(list(after.vectors(part, fitted))),
            self.settings.K,
            nredo=self.settings.nredo,
            niter=self.settings.niter,
            seed=derive_seed(self.seed, "discovery", f"codes{part}"),
            max_points=self.settings.max_patches,
        )
        return by_size(table, labels)[0]

    # Moves.

    def _move(self, move: MovedRegion) -> Move:
        """With the point as a share of what the label map covers."""
        at = None
        if move.at is not None:
            names = [self.source.name(index) for index in range(len(self.source))]
            height, width = self.source.image(names.index(move.image)).shape[1:]
            if not (0 <= move.at[0] <= width and 0 <= move.at[1] <= height):
                raise UserError(
                    f"parts.yaml: the move in {move.image!r} is at {list(move.at)}, outside of the image, which is "
                    f"{width} pixels wide and {height} high; 'at' is [x, y]."
                )
            top, left, kept_height, kept_width = kept_window(height, width)
            at = ((move.at[0] - left) / kept_width, (move.at[1] - top) / kept_height)
        return Move(move.image, int(move.source), int(move.target), at)

    # The end.

    def _discovery(self, dictionary: PartDictionary, segmented: SegmentedImages, plan: Plan) -> Discovery:
        codes = segmented.read_codes(dictionary)
        if self.by_class:
            labels = torch.tensor([self.source.label(index) for index in range(len(self.source))])
            codes = with_classes(codes, segmented.present, labels)
        metadata = self.base.metadata
        report = DiscoveryReport(
            num_images=len(self.source),
            num_patches=int(metadata.get("num_patches", 0)),
            foreground=dict(metadata.get("foreground", {"confidence": 1.0})),
            notes=[*metadata.get("notes", []), *_notes(self.base, dictionary, plan)],
            from_store=True,
        )
        report.describe(segmented.describe(dictionary, codes), self.settings)
        return Discovery(dictionary, segmented.label_maps, codes, segmented.part_features, report)


def _splits(dictionary: PartDictionary) -> dict[int, Tensor]:
    segmenter = dictionary.segmenter
    return dict(segmenter.splits) if isinstance(segmenter, CorrectedSegmenter) else {}


def _same_part(
    one: PartDictionary, part: int, sources: frozenset[tuple[int, int, int]], segmenter: CorrectedSegmenter
) -> bool:
    """Whether a dictionary has a part of this number with the very same regions."""
    if part > one.num_parts or one.segmenter.sources(part) != sources:
        return False
    labels = {label for label, pieces, _ in sources if pieces > 1}
    return all(torch.equal(_splits(one)[label], segmenter.splits[label]) for label in labels)


def _inherited(former: Tensor, pieces: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Centroids under the former numbers: the mean direction of the images of each code; without any, as it was.

    Args:
        former: (K, D).
        pieces: (n, D) vectors by which the former codes are read, and (n, D) those that the part has now.
    """
    sums = torch.zeros_like(former)
    for old, new in pieces:
        sums.index_add_(0, nearest(old, former), F.normalize(new, dim=1))
    return torch.where((sums != 0).any(dim=1, keepdim=True), F.normalize(sums, dim=1), former)


def _notes(base: PartDictionary, dictionary: PartDictionary, plan: Plan) -> list[str]:
    notes = [f"Part {part} ({plan.names[part]}): {reason}." for part, reason in sorted(plan.retired.items())]
    new = [
        f"{part} ({name})" for part, name in enumerate(plan.names) if part > base.num_parts and part not in plan.retired
    ]
    return [*notes, *([f"Split off: part {', '.join(new)}."] if new else [])]


# What a person sees before it is done.


@dataclass(frozen=True)
class Effect:
    """What corrections change.

    Attributes:
        parts: per part: number, name before and after (None where there is none), images that show it before and
            after, images whose code is the same, and what became of a retired part.
        untrained: name -> codes that the former dictionary does not have, and so no token was trained for.
    """

    parts: list[dict[str, Any]]
    untrained: dict[str, list[int]]

    def lines(self) -> list[str]:
        """In sentences, for a log."""
        said = []
        for row in self.parts:
            names = f"part {row['part']} ({row['after'] or row['before']})"
            if row["after"] is None and row["before"] is not None:
                said.append(f"{names}: {row['retired'] or 'gone'}")
            elif row["before"] is None and row["after"] is not None:
                said.append(f"{names}: new, in {row['images_after']} images")
            elif row["after"] is not None:
                renamed = f", was {row['before']}" if row["before"] != row["after"] else ""
                same = f"{row['same_code']} of {row['images_before']} images keep their code"
                said.append(f"{names}{renamed}: in {row['images_after']} images, {same}")
        said += [f"untrained: {name_codes(name, codes)}" for name, codes in self.untrained.items()]
        return said


def effect_of(before: Discovery, after: Discovery, trained: Sequence[int] | None = None) -> Effect:
    """Compares two discoveries of the same images.

    Args:
        before, after: without and with corrections.
        trained: number of codes of each part that tokens were trained for; None for those of ``before``.
    """
    reasons = after.dictionary.metadata.get("retired", {})
    parts = []
    for part in range(max(before.codes.shape[1], after.codes.shape[1])):
        columns = [
            one.codes[:, part] if part < one.codes.shape[1] else torch.full((len(one.codes),), ABSENT)
            for one in (before, after)
        ]
        names = [
            one.dictionary.names[part] if part <= one.dictionary.num_parts and one.dictionary.num_codes(part) else None
            for one in (before, after)
        ]
        shown = [column != ABSENT for column in columns]
        parts.append(
            {
                "part": part,
                "before": names[0],
                "after": names[1],
                "images_before": int(shown[0].sum()),
                "images_after": int(shown[1].sum()),
                "same_code": int((shown[0] & (columns[0] == columns[1])).sum()),
                "retired": reasons.get(str(part)),
            }
        )
    missing = untrained_codes(trained or before.dictionary.codes_per_part, after.dictionary.codes_per_part)
    return Effect(parts, {after.dictionary.names[part]: codes for part, codes in missing.items()})
