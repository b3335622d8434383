"""Evaluation prompts and reference images of photographs with several concepts, in the layout of DisenDiff's data."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.images import read_image

#: Subset of the prompts with all concepts at once.
COMBINED = "combined"
_PLACEHOLDER = re.compile(r"<([^<>]*)>")


@dataclass(frozen=True)
class ConceptSubset:
    """Prompts of one subset and their reference image.

    Attributes:
        prompts: with placeholders, as published.
        texts: without placeholders, as CLIP reads them.
        reference: (3, height, width) uint8: the training image, or the crop of one concept.
    """

    prompts: tuple[str, ...]
    texts: tuple[str, ...]
    reference: Tensor


@dataclass(frozen=True)
class ConceptSet:
    """One photograph with several concepts.

    Attributes:
        name: of its folder.
        nouns: class of each concept.
        subsets: "combined", "concept1", "concept2", ...
    """

    name: str
    nouns: tuple[str, ...]
    subsets: dict[str, ConceptSubset]


def read_concepts(folder: str | Path) -> ConceptSet:
    """Reads a folder such as ``cat_dog/``.

    It holds ``prompts_global.txt`` and ``eval_global.jpg`` for all concepts together, and for each concept i from 1
    ``prompts_subject<i>.txt`` and ``eval_subject<i>.jpg``; images may have any format. The folder's name gives the
    nouns, joined by "_".

    Raises:
        UserError: if something is missing, unreadable or empty.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        siblings = [entry.name for entry in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise UserError(f"There is no folder {folder}. {did_you_mean(folder.name, siblings)}".rstrip())
    nouns = tuple(folder.resolve().name.split("_"))
    names = {COMBINED: "global"} | {f"concept{i}": f"subject{i}" for i in range(1, len(nouns) + 1)}
    return ConceptSet(
        folder.resolve().name, nouns, {name: _read_subset(folder, suffix, nouns) for name, suffix in names.items()}
    )


def plain_text(prompt: str, nouns: Sequence[str] = ()) -> str:
    """A prompt without placeholders: ``<new1>`` goes, ``<chair>`` becomes "chair" where that is a noun of the set.

    DisenDiff's scripts remove ``<new1>`` and ``<new2>`` only and leave its ``<mew2>`` and ``<chair>`` in the text.
    """
    known = {noun.lower() for noun in nouns}
    text = _PLACEHOLDER.sub(lambda found: f" {found[1]} " if found[1].lower() in known else " ", prompt)
    return " ".join(text.split())


def _read_subset(folder: Path, suffix: str, nouns: Sequence[str]) -> ConceptSubset:
    path = folder / f"prompts_{suffix}.txt"
    images = sorted(folder.glob(f"eval_{suffix}.*"))
    if not path.is_file() or len(images) != 1:
        lacking = path.name if not path.is_file() else f"one image eval_{suffix}.* (there are {len(images)})"
        raise UserError(
            f"{folder} is not a complete set of {len(nouns)} concepts ({', '.join(nouns)}): it lacks {lacking}."
        )
    prompts = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if not prompts:
        raise UserError(f"{path} holds no prompts: write one per line.")
    return ConceptSubset(prompts, tuple(plain_text(prompt, nouns) for prompt in prompts), read_image(images[0]))
