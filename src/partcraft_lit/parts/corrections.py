"""Corrections of discovered parts by a person: what ``parts.yaml`` says, and what it means for a dictionary.

**The file.** ``parts.yaml`` lies beside a run or a data set. Its keys are the fields of :class:`Corrections`; its
parts are the numbers and names that discovery gave, pieces of a split part are called ``head_2``, ``head_3``..., and
names under ``rename`` may be used as well. It is one statement and no list of steps: the order of its entries means
nothing, except that split-off pieces are numbered in it. Beside it lies ``.parts/``: ``base/``, the dictionary that is
corrected, ``applied/``, the dictionaries that came out of it, and ``history/``, the former files.

**Numbers stay.** The corrected dictionary reads images with the base's centroids, and so do later ones: images that
are added are read and fit nothing anew. A part keeps its number, and with it its column of the token mapper, whatever
becomes of the others. A merged part has the number of the first that is named. Of a split part the larger piece keeps
the number; the others are appended, and a number that was given once never means another part. Parts that are merged
away, dropped or turned into background are *retired*: they have a number, and no codes.

**Codes stay.** A part whose regions are the same has the same table of centroids. A merged or split part that keeps
its number keeps its codes too: the centroid of code k becomes the mean of the images that had code k. Split-off pieces
get codes of their own by k-means, which are untrained until a run trains them. What was applied before is applied in
the same way again, so undo gives back the very same codes. Pieces of another split of the same part keep the numbers
of the former pieces that they are most like (Hungarian method on the cosine of centroids). No entry may change parts
under ``lock``.

**A trained run** meets a changed dictionary by number: token (m, k) is trained if a checkpoint of it has seen code k
of part m. ``untrained_codes`` lists the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field

from partcraft_lit.core.errors import UserError, nearest_names
from partcraft_lit.core.part_names import check_part_names
from partcraft_lit.core.types import BACKGROUND
from partcraft_lit.parts.corrected import DROPPED
from partcraft_lit.parts.settings import MAX_PARTS

#: A part in a file: its number or its name.
Ref = int | str
#: Pieces that a part can be split into.
MAX_PIECES = 16


@dataclass(frozen=True)
class MovedRegion:
    """A region of one image that belongs to another part; it changes this image and nothing else.

    Attributes:
        image: its name, relative to the data set.
        source, target: parts; ``from`` and ``to`` in the file.
        at: x and y in pixels of a point of the region: the connected region around it is moved. None moves all of it.
    """

    image: str
    source: Ref
    target: Ref
    at: tuple[float, float] | None = None


@dataclass(frozen=True)
class Corrections:
    """What a person says of the parts.

    Attributes:
        rename: part -> name.
        merge: parts that are one; the first keeps its number and name.
        split: part -> number of pieces, by k-means inside the part.
        drop: parts whose regions go to the parts around them.
        background: parts that are background.
        lock: parts that no other entry may change, or "all".
        move: regions of single images.
    """

    rename: Mapping[Ref, str] = field(default_factory=dict)
    merge: tuple[tuple[Ref, ...], ...] = ()
    split: Mapping[Ref, Annotated[int, Field(ge=2, le=MAX_PIECES)]] = field(default_factory=dict)
    drop: tuple[Ref, ...] = ()
    background: tuple[Ref, ...] = ()
    lock: tuple[Ref, ...] | Literal["all"] = ()
    move: tuple[MovedRegion, ...] = ()

    # One step each, for an interface in which a person clicks. Nothing is checked before ``resolve``.

    def renamed(self, part: Ref, name: str) -> Self:
        return replace(self, rename={**self.rename, part: name})

    def merged(self, parts: Sequence[Ref]) -> Self:
        """Merges parts; groups that share one become one group."""
        group, others = list(parts), []
        for former in self.merge:
            if set(former) & set(group):
                group = [*former, *(part for part in group if part not in former)]
            else:
                others.append(former)
        return replace(self, merge=(*others, tuple(dict.fromkeys(group))))

    def divided(self, part: Ref, pieces: int) -> Self:
        return replace(self, split={**self.split, part: pieces})

    def dropped(self, part: Ref) -> Self:
        return replace(self, drop=(*self.drop, part))

    def as_background(self, part: Ref) -> Self:
        return replace(self, background=(*self.background, part))

    def locked(self, part: Ref) -> Self:
        return self if self.lock == "all" else replace(self, lock=(*self.lock, part))

    def moved(self, image: str, source: Ref, target: Ref, at: tuple[float, float] | None = None) -> Self:
        return replace(self, move=(*self.move, MovedRegion(image, source, target, at)))

    def plain(self) -> dict[str, Any]:
        """As in the file; fields that say nothing are left out."""
        moves: list[dict[str, Any]] = []
        for move in self.move:
            moves.append({"image": move.image, "from": move.source, "to": move.target})
            if move.at is not None:
                moves[-1]["at"] = list(move.at)
        values = {
            "rename": dict(self.rename),
            "merge": [list(group) for group in self.merge],
            "split": dict(self.split),
            "drop": list(self.drop),
            "background": list(self.background),
            "lock": self.lock if self.lock == "all" else list(self.lock),
            "move": moves,
        }
        return {key: value for key, value in values.items() if value}


@dataclass(frozen=True)
class Plan:
    """What corrections mean for the dictionary that they are about.

    Attributes:
        names: of all parts, the background first; retired ones have one too.
        splits: label -> number of pieces, in the order in which the pieces are numbered.
        owners: part of each region of a ``CorrectedSegmenter``, or ``DROPPED``.
        retired: part -> what became of it, for messages.
        moves: with numbers of parts.
        piece_ids: (label, piece) -> number of each piece that is split off, also if it was merged away.
    """

    names: tuple[str, ...]
    splits: Mapping[int, int]
    owners: tuple[int, ...]
    retired: Mapping[int, str]
    moves: tuple[MovedRegion, ...]
    piece_ids: Mapping[tuple[int, int], int] = field(default_factory=dict)

    @property
    def only_names(self) -> bool:
        """Whether the regions stay as they are."""
        return not self.splits and not self.moves and self.owners == tuple(range(len(self.owners)))


def resolve(
    corrections: Corrections,
    names: Sequence[str],
    piece_ids: Mapping[tuple[int, int], int] | None = None,
    first_free: int | None = None,
) -> Plan:
    """Checks corrections against the parts that they are about.

    Args:
        corrections: from a file or a person's clicks.
        names: of the base dictionary, the background first.
        piece_ids: (label, piece) -> number that the piece was given before.
        first_free: the first number that no piece was ever given; None for the number of parts.

    Raises:
        UserError: for an unknown part (with the nearest names), a locked one, or entries in conflict.
    """
    return _Resolver(corrections, names, dict(piece_ids or {}), first_free or len(names)).plan()


class _Resolver:
    def __init__(
        self, corrections: Corrections, names: Sequence[str], piece_ids: dict[tuple[int, int], int], first_free: int
    ) -> None:
        self.given = corrections
        self.base_names = list(names)
        self.splits: dict[int, int] = {}
        self.known: dict[str, set[int]] = {}  # folded name -> regions
        self.region_names = list(names)
        for number, name in enumerate(names):
            self._learn(name, number)
        for ref, pieces in corrections.split.items():
            label = self._region(ref, "split")
            if label >= len(names) or label in self.splits:
                raise UserError(
                    f"parts.yaml: split names {ref!r} twice, or a piece. Give the part more pieces instead."
                )
            self.splits[label] = pieces
        self.ids = list(range(len(names)))  # of each region, before anything is merged
        self.piece_ids: dict[tuple[int, int], int] = {}
        for label, pieces in self.splits.items():
            for piece in range(1, pieces):
                number = piece_ids.get((label, piece), first_free)
                first_free += number == first_free
                self.ids.append(number)
                self.piece_ids[label, piece] = number
                self.region_names.append(f"{names[label]}_{piece + 1}")
                self._learn(self.region_names[-1], len(self.region_names) - 1)
        if max(self.ids) > MAX_PARTS:
            raise UserError(f"parts.yaml: split would make part {max(self.ids)}, and the most is {MAX_PARTS}.")
        self.num_parts = max(*self.ids, first_free - 1)

    def plan(self) -> Plan:
        new_names = self._rename()
        owners, retired = self._owners(new_names)
        for number in range(len(self.base_names), self.num_parts + 1):
            if number not in self.ids:
                retired[number] = "it was a piece of a part that is not split in this way any more"
        if not any(part > 0 for part in owners):
            raise UserError("parts.yaml: no part would be left besides the background. Keep one.")
        names = self._part_names(new_names, retired)
        moves = tuple(self._move(move, owners) for move in self.given.move)
        return Plan(names, self.splits, tuple(owners), retired, moves, self.piece_ids)

    # Names.

    def _learn(self, name: str, region: int) -> None:
        self.known.setdefault(name.casefold(), set()).add(region)

    def base_or_piece(self, region: int) -> str:
        return f"part {self.ids[region]} ({self.region_names[region]})"

    def _rename(self) -> dict[int, str]:
        """Region -> name; from here on the new names are known too."""
        self.renamed: dict[int, str] = {}
        for ref, name in self.given.rename.items():
            region = self._region(ref, "rename")
            if region == BACKGROUND:
                raise UserError("parts.yaml: the background cannot be renamed; its name stands in every prompt.")
            if region in self.renamed:
                raise UserError(f"parts.yaml: rename names {self.base_or_piece(region)} twice.")
            self.renamed[region] = name
        for region, name in self.renamed.items():
            try:
                check_part_names([name])
            except UserError as error:
                raise UserError(f"parts.yaml, rename: {error}") from None
            self._learn(name, region)
        first = len(self.base_names)
        for label, pieces in self.splits.items():
            for region in range(first, first + pieces - 1):
                if label in self.renamed:
                    own = f"{self.renamed[label]}_{region - first + 2}"
                    self._learn(own, region)
                    if region not in self.renamed:
                        self.region_names[region] = own
            first += pieces - 1
        return {region: self.renamed.get(region, name) for region, name in enumerate(self.region_names)}

    def _part_names(self, new_names: Mapping[int, str], retired: Mapping[int, str]) -> tuple[str, ...]:
        names: list[str | None] = [None] * (self.num_parts + 1)
        for region, number in enumerate(self.ids):
            if number not in retired:
                names[number] = new_names[region]
        try:
            check_part_names([name for name in names[1:] if name is not None])
        except UserError as error:
            raise UserError(f"parts.yaml, rename: {error}") from None
        taken = {str(name).casefold() for name in names if name is not None}
        for number in range(len(names)):
            if names[number] is None:  # a retired part leaves its name to whoever wants it
                own = next((new_names[r] for r, n in enumerate(self.ids) if n == number), f"part{number}")
                while own.casefold() in taken:
                    own += f"_{number}"
                taken.add(own.casefold())
                names[number] = own
        return tuple(str(name) for name in names)

    def _regions(self, refs: Iterable[Ref], where: str) -> list[int]:
        return [self._region(ref, where) for ref in refs]

    def _region(self, ref: Ref, where: str) -> int:
        """The region that a number or a name means.

        Raises:
            UserError: if there is none, or two.
        """
        if isinstance(ref, bool) or ref is None:
            raise UserError(f"parts.yaml: {where} names {ref!r}, which YAML reads as no text; put the name in quotes.")
        if isinstance(ref, str) and ref.isdecimal():
            ref = int(ref)
        if isinstance(ref, int):
            ids = getattr(self, "ids", list(range(len(self.base_names))))
            if ref not in ids:
                raise UserError(
                    f"parts.yaml: {where} names part {ref}, and there is none. Parts are {self._listing()}."
                )
            return ids.index(ref)
        found = self.known.get(ref.casefold(), set())
        if len(found) > 1:
            raise UserError(
                f"parts.yaml: {where} names {ref!r}, which is the old name of one part and the new name of "
                "another. Give the part's number."
            )
        if not found:
            raise UserError(
                f"parts.yaml: {where} names {ref!r}, and no part is called so. {nearest_names(ref, self.region_names)}"
                f"Parts are {self._listing()}."
            )
        return next(iter(found))

    def _listing(self) -> str:
        ids = getattr(self, "ids", range(len(self.region_names)))
        return ", ".join(f"{number} {name}" for number, name in zip(ids, self.region_names, strict=True))

    # What becomes of the regions.

    def _owners(self, names: Mapping[int, str]) -> tuple[list[int], dict[int, str]]:
        """Part of each region, and what became of the parts that have none."""
        owners, said, retired = list(self.ids), dict[int, str](), dict[int, str]()
        locked = (
            set(range(1, len(self.ids))) if self.given.lock == "all" else set(self._regions(self.given.lock, "lock"))
        )

        def claim(region: int, entry: str) -> None:
            if region in said:
                raise UserError(
                    f"parts.yaml: {self.base_or_piece(region)} is in {said[region]} and in {entry}; it can be in one."
                )
            if region in locked:
                raise UserError(f"parts.yaml: {self.base_or_piece(region)} is locked, and {entry} would change it.")
            said[region] = entry

        for label in self.splits:
            if label in locked:
                raise UserError(f"parts.yaml: {self.base_or_piece(label)} is locked, and split would change it.")
        for group in self.given.merge:
            regions = self._regions(group, "merge")
            if len(regions) < 2:
                raise UserError(f"parts.yaml: merge takes groups of two parts or more, got {list(group)}.")
            if BACKGROUND in regions:
                others = [ref for ref, region in zip(group, regions, strict=True) if region != BACKGROUND]
                raise UserError(
                    f"parts.yaml: merge {list(group)} names the background. To make a part background, write "
                    f"background: {others}."
                )
            for region in regions:
                claim(region, f"merge {list(group)}")
            for region in regions[1:]:
                owners[region] = self.ids[regions[0]]
                retired[self.ids[region]] = f"it was merged into part {self.ids[regions[0]]} ({names[regions[0]]})"
        for key, owner, reason in (("drop", DROPPED, "it was dropped"), ("background", BACKGROUND, "it is background")):
            for ref in getattr(self.given, key):
                region = self._region(ref, key)
                if region == BACKGROUND:
                    raise UserError(f"parts.yaml: {key} names the background itself.")
                claim(region, key)
                owners[region] = owner
                retired[self.ids[region]] = reason
        return owners, retired

    def _move(self, move: MovedRegion, owners: Sequence[int]) -> MovedRegion:
        parts = []
        for ref in (move.source, move.target):
            region = self._region(ref, f"move of {move.image!r}")
            if owners[region] == DROPPED:
                raise UserError(f"parts.yaml: the move in {move.image!r} names {ref!r}, which is dropped.")
            parts.append(owners[region])
        if parts[0] == parts[1]:
            raise UserError(f"parts.yaml: the move in {move.image!r} goes from a part to itself.")
        return replace(move, source=parts[0], target=parts[1])


def untrained_codes(trained: Sequence[int], now: Sequence[int]) -> dict[int, list[int]]:
    """Part -> codes that a dictionary has and no checkpoint has seen.

    Args:
        trained: number of codes of each part of the dictionary that was trained with, the background first.
        now: the same of the dictionary as it is.
    """
    missing = {
        part: list(range(trained[part] if part < len(trained) else 0, number)) for part, number in enumerate(now)
    }
    return {part: codes for part, codes in missing.items() if codes}


def name_codes(name: str, codes: Sequence[int]) -> str:
    """Codes of a part as prompts write them: ``<head:0> to <head:19>``."""
    if len(codes) > 2 and list(codes) == list(range(codes[0], codes[-1] + 1)):
        return f"<{name}:{codes[0]}> to <{name}:{codes[-1]}>"
    return ", ".join(f"<{name}:{code}>" for code in codes)
