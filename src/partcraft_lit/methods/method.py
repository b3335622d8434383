"""What a method is to the rest: captions, ids, vectors for the part tokens, and what of it trains."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.types import TokenizedPrompts


class Method(Protocol):
    """A way to personalise a backbone by part tokens. Implementations are ``nn.Module``s.

    ``make_caption`` and ``tokenize`` are objects of their own, so that loader workers receive no weights with them.
    """

    vocabulary: PartVocabulary

    @property
    def make_caption(self) -> Callable[[Tensor, torch.Generator], str]:
        """(M + 1,) codes and a CPU generator -> a training caption in the prompt grammar."""
        ...

    @property
    def tokenize(self) -> Callable[[Sequence[str]], TokenizedPrompts]:
        """Prompts -> ids and places of part tokens, on the CPU."""
        ...

    def plain_caption(self, codes: Tensor) -> str:
        """(M + 1,) codes -> the caption for samples and scores, without chance."""
        ...

    def part_vectors(self, tokens: TokenizedPrompts) -> Tensor:
        """(B, T, sum of token widths) embeddings for the part tokens, zeros where there is none."""
        ...

    def bake(self) -> Tensor:
        """(M + 1, K, sum of token widths) embedding of every code of every part."""
        ...

    def trainable_groups(self) -> dict[str, list[nn.Parameter]]:
        """What trains beside the adapters of the backbone, by the name under which a learning rate can be set."""
        ...
