"""Tokenizes prompts with part tokens: one position per part token, text as CLIP or the backbone's format does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import PartToken, TextFormat, TokenizedPrompts
from partcraft_lit.tokens.grammar import PartVocabulary, parse, render
from partcraft_lit.tokens.words import word_ids

#: Positions of CLIP's text encoders, the start and the end of the text included.
CLIP_LENGTH = 77


@dataclass(frozen=True)
class _Word:
    """A word with its ids, the same for every tokenizer, or a part token."""

    text: str
    ids: tuple[int, ...]
    token: PartToken | None = None


def tokenize(
    prompts: Sequence[str],
    vocabulary: PartVocabulary,
    tokenizers: Sequence[Any],
    max_length: int = CLIP_LENGTH,
    fill: str | None = None,
) -> TokenizedPrompts:
    """Tokenizes prompts with part tokens for CLIP.

    Without part tokens, ids are those of ``tokenizer(prompt, padding="max_length", max_length=max_length)``. A part
    token
    has one position with the smallest ordinary id: inside the embedding table, not EOS, and not the largest id, at
    which older CLIP models pool.

    Args:
        prompts: B prompts in the grammar of ``tokens.grammar``.
        vocabulary: parts and codes.
        tokenizers: one CLIP tokenizer per text encoder, with the same ids for a text; padding may differ.
        max_length: positions of the text encoder (L).
        fill: a word of one token that stands at part tokens instead, for encoders that read what is there.

    Returns:
        CPU tensors; T is the largest number of part tokens of a prompt.

    Raises:
        UserError: for a mistake in the grammar, a prompt that is too long (with the words that would be cut), or an
            unknown word.
        ValueError: if the tokenizers disagree on a text.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a sequence of prompts, got one string; put it into a list.")
    known: dict[str, tuple[int, ...]] = {}  # each word is tokenized once per call
    rows = [_fit(_words(prompt, vocabulary, tokenizers, known), max_length) for prompt in prompts]
    tokens = [[(place, word.token) for place, word in _placed(row) if word.token is not None] for row in rows]
    return TokenizedPrompts(
        input_ids=tuple(_ids(rows, tokenizer, max_length, fill) for tokenizer in tokenizers),
        part_positions=_padded([[place for place, _ in row] for row in tokens]),
        part_ids=_padded([[token.part for _, token in row] for row in tokens]),
        code_ids=_padded([[token.code for _, token in row] for row in tokens]),
        part_weights=_weights([[token.weight for _, token in row] for row in tokens]),
    )


@dataclass(frozen=True)
class PromptTokenizer:
    """Tokenization with prompts as its only argument; picklable, for loader workers.

    Attributes:
        vocabulary, tokenizers, max_length, fill: as for ``tokenize``.
        text_format: of a backbone whose text encoder is not CLIP; it has tokenizer and length itself.
    """

    vocabulary: PartVocabulary
    tokenizers: Sequence[Any]
    max_length: int = CLIP_LENGTH
    text_format: TextFormat | None = None
    fill: str | None = None

    def __call__(self, prompts: Sequence[str]) -> TokenizedPrompts:
        if self.text_format is None:
            return tokenize(prompts, self.vocabulary, self.tokenizers, self.max_length, self.fill)
        return self.text_format([parse(prompt, self.vocabulary) for prompt in prompts], self.fill)


def placeholder_id(tokenizer: Any) -> int:
    """The smallest id that is not a special token."""
    special = set(tokenizer.all_special_ids)
    return next(index for index in range(len(tokenizer)) if index not in special)


def _words(
    prompt: str, vocabulary: PartVocabulary, tokenizers: Sequence[Any], known: dict[str, tuple[int, ...]]
) -> list[_Word]:
    """Words of a prompt. CLIP merges no letters across spaces, so tokenizing words one by one is equivalent."""
    words: list[_Word] = []
    for piece in parse(prompt, vocabulary):
        if isinstance(piece, PartToken):
            words.append(_Word(render([piece], vocabulary), (-1,), piece))
            continue
        for text in piece.split():
            if text not in known:
                known[text] = _word_ids(text, tokenizers)
            words.append(_Word(text, known[text]))
    return words


def _word_ids(text: str, tokenizers: Sequence[Any]) -> tuple[int, ...]:
    each = [tuple(tokenizer(text, add_special_tokens=False, verbose=False).input_ids) for tokenizer in tokenizers]
    if any(ids != each[0] for ids in each):
        raise ValueError(
            f"The tokenizers disagree on {text!r}: {[list(ids) for ids in each]}. Part tokens need all text encoders "
            f"to read the same ids, as the CLIP tokenizers of one Stable Diffusion model do."
        )
    ends = {tokenizers[0].bos_token_id, tokenizers[0].eos_token_id}
    if ends & set(each[0]):
        raise UserError(
            f"The tokenizer does not know {text[:60]!r} and would read the end of the text there; leave the word out "
            f"or write another one."
        )
    return each[0]


def _fit(words: list[_Word], max_length: int) -> list[_Word]:
    """The words, if they fit between BOS and EOS."""
    room, used = max_length - 2, 0
    for index, word in enumerate(words):
        used += len(word.ids)
        if used > room:
            needed = sum(len(other.ids) for other in words)
            cut = [other.text for other in words[index:]]
            shown = " ".join(cut[:12])
            if len(cut) > 12 or len(shown) > 200:
                shown = f"{shown[:200]} ... ({len(cut)} words)"
            raise UserError(
                f"The prompt takes {needed} positions and the text encoder has {room}; these words would be cut: "
                f"{shown!r}. Shorten the prompt by {needed - room} positions; a part token or a common word takes one."
            )
    return words


def _placed(words: list[_Word]) -> list[tuple[int, _Word]]:
    """Each word with the position of its first id; position 0 is BOS."""
    placed, place = [], 1
    for word in words:
        placed.append((place, word))
        place += len(word.ids)
    return placed


def _ids(rows: list[list[_Word]], tokenizer: Any, max_length: int, fill: str | None) -> Tensor:
    """(B, L) ids with BOS, EOS and padding."""
    blank = placeholder_id(tokenizer) if fill is None else word_ids(fill, [tokenizer])[0]
    ids = torch.full((len(rows), max_length), int(tokenizer.pad_token_id), dtype=torch.long)
    for row, words in zip(ids, rows, strict=True):
        text = [blank if number < 0 else number for word in words for number in word.ids]
        text = [tokenizer.bos_token_id, *text, tokenizer.eos_token_id]
        row[: len(text)] = torch.tensor(text)
    return ids


def _weights(rows: list[list[float]]) -> Tensor | None:
    """(B, T), padded with 1; None if all are 1."""
    if all(weight == 1.0 for row in rows for weight in row):
        return None
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[1.0] * (longest - len(row))] for row in rows])


def _padded(rows: list[list[int]]) -> Tensor:
    """(B, T) integers, padded with -1."""
    longest = max((len(row) for row in rows), default=0)
    flat = [number for row in rows for number in [*row, *[-1] * (longest - len(row))]]
    return torch.tensor(flat, dtype=torch.long).reshape(len(rows), longest)
