"""Prompts for text encoders that are not CLIP: cleaning, template, length, and one position per part token."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import PartToken, TokenizedPrompts

#: Stands for a part token while a prompt is cleaned: a character that no text has and no cleaning touches.
_MARK = "\ue000"
_MARKS = re.compile(rf" *{_MARK}")


@dataclass(frozen=True)
class PromptFormat:
    """A fast tokenizer with the special tokens or the template around a prompt.

    Texts between part tokens are tokenized one by one, spaces included, which is how tokenizers that mark the start of
    a word (SentencePiece with ``▁``, byte-level BPE) read them in one piece. Prompts without part tokens get the
    tokenizer's own ids.

    Attributes:
        tokenizer: of transformers.
        max_length: positions of the text (L), padding included.
        clean: text -> text, applied to the whole prompt; picklable. None leaves prompts as they are.
        prefix, suffix: ids around each prompt; see ``around``.
    """

    tokenizer: Any
    max_length: int
    clean: Callable[[str], str] | None = None
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()

    def __call__(self, prompts: Sequence[Sequence[str | PartToken]], fill: str | None = None) -> TokenizedPrompts:
        """Ids, mask and part tokens of prompts, see ``core.types.TextFormat``."""
        blank = self._ordinary_id() if fill is None else self.word_id(fill)
        rows = [self._row(pieces, blank) for pieces in prompts]
        ids = torch.full((len(rows), self.max_length), int(self.tokenizer.pad_token_id), dtype=torch.long)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for number, (row, _) in enumerate(rows):
            start = self._start(row)
            ids[number, start : start + len(row)] = torch.tensor(row, dtype=torch.long)
            mask[number, start : start + len(row)] = True
        places = [[self._start(row) + place for place in marks] for row, marks in rows]
        tokens = [[piece for piece in pieces if isinstance(piece, PartToken)] for pieces in prompts]
        return TokenizedPrompts(
            input_ids=(ids,),
            part_positions=_padded(places),
            part_ids=_padded([[token.part for token in row] for row in tokens]),
            code_ids=_padded([[token.code for token in row] for row in tokens]),
            part_weights=_weights(tokens),
            attention_mask=mask,
        )

    def word_id(self, word: str) -> int:
        """The id of a word inside a text.

        Raises:
            UserError: if it is not a single token.
        """
        ids = self._ids(f"a {word}")[len(self._ids("a")) :]
        if len(ids) != 1:
            pieces = " ".join(repr(piece) for piece in self.tokenizer.convert_ids_to_tokens(ids))
            raise UserError(
                f"The word {word!r} is {len(ids)} tokens to this model ({pieces}), and a part token has one position: "
                "take a common, single word."
            )
        return ids[0]

    def _row(self, pieces: Sequence[str | PartToken], blank: int) -> tuple[list[int], list[int]]:
        """Ids of a prompt with its surroundings, and the places of its part tokens."""
        text = "".join(_MARK if isinstance(piece, PartToken) else piece.replace(_MARK, "") for piece in pieces)
        first, *others = _MARKS.split(text if self.clean is None else self.clean(text))
        row, places = [*self.prefix, *self._ids(first)], []
        for segment in others:
            places.append(len(row))
            row += [blank, *self._ids(segment)]
        row += self.suffix
        if len(row) > self.max_length:
            raise UserError(
                f"The prompt takes {len(row)} positions with its surroundings, and the text encoder has "
                f"{self.max_length}: {text.replace(_MARK, '<...>')[:200]!r}. Shorten it by "
                f"{len(row) - self.max_length} positions; a part token or a common word takes one."
            )
        return row, places

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids) if text else []

    def _start(self, row: Sequence[int]) -> int:
        return self.max_length - len(row) if self.tokenizer.padding_side == "left" else 0

    def _ordinary_id(self) -> int:
        """The smallest id that is not a special token."""
        special = set(self.tokenizer.all_special_ids)
        return next(index for index in range(len(self.tokenizer)) if index not in special)


def around(tokenizer: Any, template: Callable[[str], str] = str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and behind a prompt: special tokens, and the text of a template.

    Args:
        tokenizer: of transformers.
        template: prompt -> the text that is tokenized, with the prompt once in it.

    Raises:
        ValueError: if the template's text is not tokenized apart from the prompt's.
    """
    word = list(tokenizer("word", add_special_tokens=False).input_ids)
    whole = list(tokenizer(template("word")).input_ids)
    starts = [n for n in range(len(whole) - len(word) + 1) if whole[n : n + len(word)] == word]
    if len(starts) != 1:
        raise ValueError(f"The tokenizer does not read {template('word')!r} as a template around 'word'.")
    return tuple(whole[: starts[0]]), tuple(whole[starts[0] + len(word) :])


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, T) integers, padded with -1."""
    longest = max((len(row) for row in rows), default=0)
    padded = [[*row, *[-1] * (longest - len(row))] for row in rows]
    return torch.tensor(padded, dtype=torch.long).reshape(len(rows), longest)


def _weights(rows: Sequence[Sequence[PartToken]]) -> Tensor | None:
    """(B, T), padded with 1; None if all are 1."""
    if all(token.weight == 1.0 for row in rows for token in row):
        return None
    longest = max(map(len, rows))
    return torch.tensor([[*[token.weight for token in row], *[1.0] * (longest - len(row))] for row in rows])
