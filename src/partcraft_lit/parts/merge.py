"""Merges the part dictionaries of several runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.segmenter import Segmenter


def check_mergeable(dictionaries: Sequence[PartDictionary]) -> None:
    """Checks that names and features of all dictionaries are compatible.

    Raises:
        UserError: if a name is taken twice, or the features differ.
    """
    taken: set[str] = set()
    for dictionary in dictionaries:
        for name in dictionary.names[1:]:
            if name.lower() in taken:
                raise UserError(
                    f"Two of the runs call a part {name!r}, and <{name}:0> can mean one of them only. Train one "
                    "under another noun (parts.names), or edit the names in its parts/dictionary.json."
                )
            taken.add(name.lower())
    first = dictionaries[0]
    for dictionary in dictionaries[1:]:
        if dictionary.features_hash != first.features_hash:
            raise UserError(
                f"The runs describe their parts by different features, {first.features_id} and "
                f"{dictionary.features_id}; train them with the same parts.features."
            )


def merge(dictionaries: Sequence[PartDictionary]) -> PartDictionary:
    """A dictionary with the parts of all, in their order; the background's codes are those of the first.

    A patch belongs to the part, or to one of the backgrounds, that it looks most like.

    Raises:
        UserError: as ``check_mergeable``.
    """
    check_mergeable(dictionaries)
    first = dictionaries[0]
    tables = [table for dictionary in dictionaries for table in dictionary.code_centroids[1:]]
    grounds = [dictionary.code_centroids[0] for dictionary in dictionaries]
    means = F.normalize(torch.stack([table.sum(dim=0) for table in (*grounds, *tables)]), dim=1)
    foreground = torch.arange(len(means)) >= len(grounds)
    return PartDictionary(
        names=("background", *(name for dictionary in dictionaries for name in dictionary.names[1:])),
        segmenter=Segmenter(torch.zeros(first.dim), means, foreground, means[len(grounds) :]),
        code_centroids=(first.code_centroids[0], *tables),
        features_id=first.features_id,
        features_hash=first.features_hash,
        metadata={"joined": [dictionary.hash for dictionary in dictionaries]},
    )
