"""Vocabularies of byte-pair tokenizers in which given words are one token each."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence


def learned_merges(words: Iterable[Sequence[str]]) -> list[tuple[str, str]]:
    """Merges that make one token of each word.

    New merges continue from where those so far leave a word ("green" is g, re, e, n once "red" is known), and they rank
    behind these, so the words before stay whole.

    Args:
        words: each as the pieces that it begins with.
    """
    merges: dict[tuple[str, str], int] = {}
    for word in words:
        pieces = list(word)
        while len(pieces) > 1:
            pairs = list(itertools.pairwise(pieces))
            best = min(pairs, key=lambda pair: merges.get(pair, len(merges)))
            merges.setdefault(best, len(merges))
            place = pairs.index(best)
            pieces[place : place + 2] = ["".join(best)]
    return list(merges)
