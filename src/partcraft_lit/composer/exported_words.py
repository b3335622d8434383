"""A composition in the words that A1111 and Forge have for it once its run is exported under its usual name."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from partcraft_lit.backbones.infotext import SAMPLERS, infotext
from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.core.types import PartToken
from partcraft_lit.tokens.grammar import PartVocabulary, parse


@dataclass(frozen=True)
class ExportedWords:
    """Names of a run's parts in A1111.

    Attributes:
        vocabulary: of prompts here.
        embedding: part and code -> name of the embedding; None for one that an export leaves out.
        adapter: name of the LoRA; "" where none was trained.
        model: name of the base model; "" for the miniature.
    """

    vocabulary: PartVocabulary
    embedding: Callable[[int, int], str | None]
    adapter: str
    model: str

    def infotext(
        self, prompt: str, negative: str, sample: SampleSettings, seed: int, size: tuple[int, int]
    ) -> str | None:
        """Generation parameters of an image; None where these tools have no words for it.

        They have none for a part with a weight, which here moves a token from the mean of its part, and there scales
        what the text encoder made of it, nor for samplers of flow matching.
        """
        words, avoided = self._renamed(prompt), self._renamed(negative)
        if words is None or avoided is None or sample.scheduler not in SAMPLERS:
            return None
        if self.adapter:
            words += f" <lora:{self.adapter}:1>"
        return infotext(words, avoided, sample, seed, size, self.model)

    def _renamed(self, prompt: str) -> str | None:
        found = []
        for piece in parse(prompt, self.vocabulary):
            word = self._word(piece) if isinstance(piece, PartToken) else _literal(piece)
            if word is None:
                return None
            found.append(word)
        return "".join(found)

    def _word(self, token: PartToken) -> str | None:
        return self.embedding(token.part, token.code) if token.weight == 1 else None


def _literal(text: str) -> str:
    """Brackets as such, which would weigh the words between them."""
    return re.sub(r"([\\()\[\]])", r"\\\1", text)
