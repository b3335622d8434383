"""The part dictionary: centroids that turn patch features into parts and codes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.part_names import check_part_names
from partcraft_lit.core.types import ABSENT
from partcraft_lit.parts.corrected import CorrectedSegmenter, Move
from partcraft_lit.parts.kmeans import nearest
from partcraft_lit.parts.segmenter import Segmenter

FORMAT = 1
#: Of a dictionary with corrections, which older versions would read wrongly.
CORRECTED_FORMAT = 2
JSON_NAME = "dictionary.json"


@dataclass(frozen=True)
class PartDictionary:
    """Centroids of the three tiers, with names.

    Attributes:
        names: one per part, M + 1; ``names[0]`` is "background".
        segmenter: tiers 1 and 2.
        code_centroids: tier 3: one (K_m, D) tensor per part 0...M, rows of length 1. A row of zeros stands for a class
            that never shows the part; only class codes have such rows. Parts that corrections took away have no rows.
        features_id, features_hash: of the patch features that the centroids live in.
        class_names: names of the codes of all foreground parts, where codes are classes; None where they are clusters.
        settings: of the discovery, plain JSON.
        metadata: confidence, counts and notes of the discovery, plain JSON.
    """

    names: tuple[str, ...]
    segmenter: Segmenter | CorrectedSegmenter
    code_centroids: tuple[Tensor, ...]
    features_id: str
    features_hash: str
    class_names: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.code_centroids) == self.segmenter.num_parts + 1:
            raise ValueError(
                f"A dictionary of {self.segmenter.num_parts} parts has {self.segmenter.num_parts + 1} names and tables "
                f"with the background, got {len(self.names)} names and {len(self.code_centroids)} tables."
            )
        check_part_names(self.names[1:])

    @property
    def num_parts(self) -> int:
        """M, without the background."""
        return self.segmenter.num_parts

    @property
    def dim(self) -> int:
        """Width D of the features."""
        return self.segmenter.dim

    @property
    def retired(self) -> tuple[int, ...]:
        """Parts that corrections took away. They keep their number, so that others keep theirs, and have no codes."""
        return self.segmenter.retired

    @property
    def base_segmenter(self) -> Segmenter:
        """Tiers 1 and 2 without corrections."""
        return self.segmenter.base if isinstance(self.segmenter, CorrectedSegmenter) else self.segmenter

    def num_codes(self, part: int) -> int:
        """K_m, codes of part 0...M."""
        return len(self.code_centroids[part])

    @property
    def codes_per_part(self) -> tuple[int, ...]:
        """K_m of every part, the background first; for the prompt grammar."""
        return tuple(len(table) for table in self.code_centroids)

    @cached_property
    def hash(self) -> str:
        """Of all centroids and the features they live in; names do not count."""
        digest = hashlib.sha256(f"{self.features_hash}:{self.segmenter.hash}".encode())
        for table in self.code_centroids:
            digest.update(str(tuple(table.shape)).encode() + table.contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def read_codes(self, part_features: Tensor, present: Tensor) -> Tensor:
        """Nearest codes.

        Args:
            part_features: (B, M + 1, D).
            present: (B, M + 1) bool.

        Returns:
            (B, M + 1) int64, ``ABSENT`` where a part is not present.
        """
        codes = torch.full(present.shape, ABSENT, dtype=torch.long)
        for part, table in enumerate(self.code_centroids):
            rows = present[:, part]
            codes[rows, part] = nearest(part_features[rows, part], table)
        return codes

    def centroids(self, codes: Tensor) -> Tensor:
        """(B, M + 1) codes -> (B, M + 1, D) centroids, zeros where ``ABSENT``.

        Raises:
            ValueError: if a code does not exist.
        """
        if codes.ndim != 2 or codes.shape[1] != self.num_parts + 1:
            raise ValueError(f"codes must be (B, {self.num_parts + 1}), got {tuple(codes.shape)}.")
        result = torch.zeros(*codes.shape, self.dim)
        for part, table in enumerate(self.code_centroids):
            column = codes[:, part].cpu()
            if bool(((column < ABSENT) | (column >= len(table))).any()):
                raise ValueError(
                    f"Part {part} ({self.names[part]}) has codes 0...{len(table) - 1}, got {column.unique().tolist()}."
                )
            rows = column != ABSENT
            result[rows, part] = table[column[rows]]
        return result.to(codes.device)

    def renamed(self, names: Sequence[str]) -> Self:
        """The same parts under other names, M of them without the background."""
        return replace(self, names=("background", *names))

    def to_bytes(self) -> tuple[bytes, str]:
        """A safetensors file and its JSON description."""
        base, corrected = self.base_segmenter, isinstance(self.segmenter, CorrectedSegmenter)
        tensors = {
            "offset": base.offset,
            "foreground_centroids": base.foreground_centroids,
            "is_foreground": base.is_foreground,
            "part_centroids": base.part_centroids,
        } | {f"code_centroids.{part}": table for part, table in enumerate(self.code_centroids)}
        if isinstance(self.segmenter, CorrectedSegmenter):
            tensors |= {f"split.{label}": table for label, table in self.segmenter.splits.items()}
        content = save_tensors({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
        description = {
            "format": CORRECTED_FORMAT if corrected else FORMAT,
            "names": list(self.names),
            "num_parts": self.num_parts,
            "num_codes": list(self.codes_per_part),
            "class_names": None if self.class_names is None else list(self.class_names),
            "features": {"id": self.features_id, "hash": self.features_hash, "dim": self.dim},
            "segmenter": {"min_cells": base.min_cells, "min_component_size": base.min_component_size},
            "settings": dict(self.settings),
            "facts": dict(self.metadata),
            "tensors_sha256": hashlib.sha256(content).hexdigest(),
        }
        if isinstance(self.segmenter, CorrectedSegmenter):
            description["corrected"] = {
                "owners": list(self.segmenter.owners),
                "splits": list(self.segmenter.splits),
                "moves": [vars(move) for move in self.segmenter.moves],
            }
        return content, json.dumps(description, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_bytes(cls, content: bytes, description: str) -> Self:
        """Inverse of :meth:`to_bytes`.

        Raises:
            ValueError: if the two do not belong together or are damaged.
        """
        meta = json.loads(description)
        if not isinstance(meta, dict) or meta.get("format") not in (FORMAT, CORRECTED_FORMAT):
            version = meta.get("format") if isinstance(meta, dict) else type(meta).__name__
            raise ValueError(f"its format is {version!r}, this version reads {FORMAT} and {CORRECTED_FORMAT}")
        if hashlib.sha256(content).hexdigest() != meta.get("tensors_sha256"):
            raise ValueError("the tensors are not the ones that the description names")
        tensors = load_tensors(content)
        base = Segmenter(
            offset=tensors["offset"],
            foreground_centroids=tensors["foreground_centroids"],
            is_foreground=tensors["is_foreground"],
            part_centroids=tensors["part_centroids"],
            **meta["segmenter"],
        )
        segmenter = _corrected(base, meta, tensors) if meta["format"] == CORRECTED_FORMAT else base
        return cls(
            names=tuple(meta["names"]),
            segmenter=segmenter,
            code_centroids=tuple(tensors[f"code_centroids.{part}"] for part in range(segmenter.num_parts + 1)),
            features_id=meta["features"]["id"],
            features_hash=meta["features"]["hash"],
            class_names=None if meta["class_names"] is None else tuple(meta["class_names"]),
            settings=meta["settings"],
            metadata=meta["facts"],
        )

    def save(self, folder: str | Path) -> Path:
        """Writes ``dictionary.json``, in which names may be edited, and the tensors beside it; returns the folder.

        The JSON names the tensors' file, whose name holds its hash, and is written last: a reader sees the old
        dictionary or the new one.
        """
        folder = Path(folder)
        content, description = self.to_bytes()
        name = _tensors_name(hashlib.sha256(content).hexdigest())
        atomic_write(folder / name, content)
        atomic_write(folder / JSON_NAME, description)
        for stale in folder.glob("dictionary-*.safetensors"):
            if stale.name != name:
                stale.unlink(missing_ok=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Reads what :meth:`save` wrote.

        Raises:
            UserError: if there is no dictionary, or it is damaged, or of another version.
        """
        folder = Path(folder)
        path = folder / JSON_NAME
        advice = "Run 'partcraft discover' again to make it."
        if not path.is_file():
            raise UserError(f"There is no part dictionary in {folder}: {JSON_NAME} is missing. {advice}")
        try:
            description = path.read_text(encoding="utf-8")
            tensors = folder / _tensors_name(str(json.loads(description)["tensors_sha256"]))
            return cls.from_bytes(tensors.read_bytes(), description)
        except FileNotFoundError as error:
            raise UserError(f"The part dictionary {path} has lost its tensors, {error.filename}. {advice}") from error
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise UserError(f"The part dictionary {path} cannot be read: {error}. {advice}") from error


def _corrected(base: Segmenter, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> CorrectedSegmenter:
    stored = meta["corrected"]
    moves = [{**move, "at": None if move["at"] is None else tuple(move["at"])} for move in stored["moves"]]
    return CorrectedSegmenter(
        base=base,
        num_parts=int(meta["num_parts"]),
        owners=tuple(stored["owners"]),
        splits={label: tensors[f"split.{label}"] for label in stored["splits"]},
        moves=tuple(Move(**move) for move in moves),
    )


def _tensors_name(sha256: str) -> str:
    return f"dictionary-{sha256[:12]}.safetensors"
