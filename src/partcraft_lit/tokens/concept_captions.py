"""Captions that name concepts one by one: "photo of a <cat:0> cat and <dog:0> dog"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from partcraft_lit.errors import UserError
from partcraft_lit.tokens.captions import check_template
from partcraft_lit.tokens.grammar import PartVocabulary, render
from partcraft_lit.types import ABSENT, BACKGROUND, PartToken

#: Which of the parts that an image shows are named: "all", or a "union" of k of them, with k uniform.
Subset = Literal["all", "union"]


@dataclass(frozen=True)
class ConceptCaptions:
    """Writes a caption for the codes of an image: a template filled with phrases, each a token with its noun behind.

    The same draws are taken from the generator whatever the settings, as in ``CaptionBuilder``.

    Attributes:
        vocabulary: parts and codes.
        nouns: M + 1 nouns, one behind the tokens of each part; "" for none.
        templates: sentences with one ``{}`` each, of which one is drawn.
        joiner: what stands between two phrases, such as " and ".
        subset: which parts are named.
        shuffle: whether their order is drawn anew each time; else by index.
        background: whether the background's token is among them.

    Raises:
        UserError: for a template without its place, or a noun that is no word.
        ValueError: if there is not one noun per part.

    Source: union sampling is that of Break-a-Scene (arXiv 2305.16311), section 3. Differs: no.
    """

    vocabulary: PartVocabulary
    nouns: Sequence[str]
    templates: Sequence[str] = ("a photo of {}",)
    joiner: str = " and "
    subset: Subset = "all"
    shuffle: bool = False
    background: bool = False

    def __post_init__(self) -> None:
        if len(self.nouns) != len(self.vocabulary.names):
            raise ValueError(f"One noun per part, {list(self.vocabulary.names)}, got {list(self.nouns)}.")
        if self.subset not in get_args(Subset):
            raise ValueError(f"subset must be one of {get_args(Subset)}, got {self.subset!r}.")
        if not self.templates:
            raise UserError("templates must hold at least one sentence, such as 'a photo of {}'.")
        for template in self.templates:
            check_template(template)
        for noun in (*self.nouns, self.joiner):
            if set("<>{}") & set(noun):
                raise UserError(f"A noun is an ordinary word such as 'bird', without brackets, got {noun!r}.")

    def __call__(self, codes: Tensor | Sequence[int], generator: torch.Generator) -> str:
        """A training caption in the prompt grammar.

        Args:
            codes: (M + 1,) code of each part, ``ABSENT`` where the image does not show it.
            generator: on the CPU.

        Returns:
            The caption, "" if there is no part to name.
        """
        template = self.templates[int(torch.randint(len(self.templates), (), generator=generator))]
        share = float(torch.rand((), generator=generator, dtype=torch.float64))
        chosen = torch.randperm(len(self.nouns), generator=generator).tolist()
        order = torch.randperm(len(self.nouns), generator=generator).tolist()

        tokens = self._tokens(codes)
        if self.subset == "union":
            tokens = union_subset(tokens, share, chosen)
        if self.shuffle:
            tokens.sort(key=lambda token: order[token.part])
        return self._sentence(tokens, template)

    def plain(self, codes: Tensor | Sequence[int], template: str | None = None) -> str:
        """The caption without chance, all present parts in order: for samples, probes and scores."""
        if template is not None:
            check_template(template)
        return self._sentence(self._tokens(codes), template or self.templates[0])

    def _tokens(self, codes: Tensor | Sequence[int]) -> list[PartToken]:
        values = [int(code) for code in (codes.tolist() if isinstance(codes, Tensor) else codes)]
        if len(values) != len(self.nouns):
            raise ValueError(f"codes must hold one code for each of {list(self.vocabulary.names)}, got {values}.")
        first = BACKGROUND if self.background else BACKGROUND + 1
        tokens = [PartToken(part, values[part]) for part in range(first, len(values)) if values[part] != ABSENT]
        for token in tokens:
            self.vocabulary.check(token)
        return tokens

    def _sentence(self, tokens: list[PartToken], template: str) -> str:
        phrases = [" ".join([render([token], self.vocabulary), self.nouns[token.part]]).strip() for token in tokens]
        return template.replace("{}", self.joiner.join(phrases)) if phrases else ""


def union_subset(tokens: list[PartToken], share: float, chosen: Sequence[int]) -> list[PartToken]:
    """k of N tokens, in their order, with k uniform in 1...N and each set of k alike.

    Args:
        tokens: one per part.
        share: 0...1 uniform; decides k.
        chosen: a random permutation of all parts; the k tokens that come first in it stay.
    """
    if not tokens:
        return tokens
    number = 1 + int(share * len(tokens))
    kept = sorted(tokens, key=lambda token: chosen[token.part])[:number]
    return [token for token in tokens if token in kept]
