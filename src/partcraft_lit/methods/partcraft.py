"""PartCraft: part tokens through a shared mapper, beside LoRA on the backbone and an attention loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper
from partcraft_lit.tokens.tokenize import CLIP_LENGTH, PromptTokenizer
from partcraft_lit.types import TokenizedPrompts


class PartCraft(nn.Module):
    """The method of Ng et al. (arXiv 2407.04604); with ``mapper.layers=0`` it is multi-token textual inversion."""

    def __init__(
        self,
        vocabulary: PartVocabulary,
        mapper: TokenMapper,
        caption_builder: CaptionBuilder,
        tokenizers: Sequence[Any],
        max_length: int = CLIP_LENGTH,
    ) -> None:
        """Puts the pieces together.

        Args:
            vocabulary: parts and codes, from the dictionary.
            mapper: the embedder; it must have room for every part and code.
            caption_builder: writes the training captions, over the same vocabulary.
            tokenizers: one per text encoder.
            max_length: positions of the text encoders.

        Raises:
            ValueError: if the pieces were made for different dictionaries.
        """
        super().__init__()
        if (mapper.num_parts, mapper.num_codes) != (vocabulary.num_parts, vocabulary.max_codes):
            raise ValueError(
                f"The mapper is for {mapper.num_parts} parts of {mapper.num_codes} codes, the vocabulary has "
                f"{vocabulary.num_parts} parts of up to {vocabulary.max_codes}; make both from one dictionary."
            )
        if caption_builder.vocabulary != vocabulary:
            raise ValueError("The caption builder has another vocabulary; make both from one dictionary.")
        self.vocabulary = vocabulary
        self.mapper = mapper
        self.make_caption = caption_builder
        self.tokenize = PromptTokenizer(vocabulary, tuple(tokenizers), max_length)

    def plain_caption(self, codes: Tensor) -> str:
        """(M + 1,) codes -> the caption for samples and scores, without chance."""
        return self.make_caption.plain(codes)

    def part_vectors(self, tokens: TokenizedPrompts) -> Tensor:
        """(B, T, sum of token widths) embeddings for the part tokens, zeros where there is none."""
        return self.mapper(tokens.part_ids, tokens.code_ids)

    def bake(self) -> Tensor:
        """(M + 1, K, sum of token widths) embedding of every code of every part."""
        return self.mapper.bake()

    def trainable_groups(self) -> dict[str, list[nn.Parameter]]:
        """The mapper, which trains beside the adapters of the backbone."""
        return {"mapper": [parameter for parameter in self.mapper.parameters() if parameter.requires_grad]}
