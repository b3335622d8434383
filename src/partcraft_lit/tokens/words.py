"""Token embeddings of ordinary words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError


def word_ids(word: str, tokenizers: Sequence[Any]) -> list[int]:
    """The id of a single-token word in each tokenizer.

    Raises:
        UserError: if the word is not exactly one token.
    """
    word_token_ids = []
    for tokenizer in tokenizers:
        ids = tokenizer(word, add_special_tokens=False).input_ids
        if len(ids) != 1 or ids[0] in tokenizer.all_special_ids:
            pieces = " ".join(repr(piece) for piece in tokenizer.convert_ids_to_tokens(ids))
            raise UserError(
                f"The word {word!r} is {len(ids)} tokens to this model ({pieces}), and a part token has one vector: "
                "take a common, single word."
            )
        word_token_ids.append(ids[0])
    return word_token_ids


def word_vector(word: str, tokenizers: Sequence[Any], tables: Sequence[Tensor]) -> Tensor:
    """The embedding of a word, concatenated over text encoders: (sum of token widths,).

    Args:
        word: a single word.
        tokenizers: one per text encoder.
        tables: embedding tables, (words, width).

    Raises:
        UserError: if the word is not exactly one token.
    """
    ids = word_ids(word, tokenizers)
    return torch.cat([table.detach()[row].float() for row, table in zip(ids, tables, strict=True)])
