"""Hidden states of prompts that a frozen text encoder has read already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

from partcraft_lit.core.types import Conditioning, TokenizedPrompts

#: Bytes of hidden states that are kept: 1,100 prompts of SD1.5, 220 of 256 positions of width 2304 in bfloat16.
_CAPACITY = 256 * 2**20


class PromptCache:
    """Encodes each distinct prompt once, alone and without gradients.

    Alone, since the encoding of a batch depends on its size in the last bits: a resumed run, whose cache is empty,
    would differ from one that never stopped. Outside autocast, so that training and sampling read the same.

    Args:
        capacity: bytes; the prompts that were not used for the longest time are dropped.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._rows: OrderedDict[tuple[object, ...], Conditioning] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def encode(self, tokens: TokenizedPrompts, encode: Callable[[TokenizedPrompts], Conditioning]) -> Conditioning:
        """Conditioning of B prompts, without regard to their part tokens; new tensors.

        Args:
            tokens: the prompts; waits for their device.
            encode: encodes prompts.
        """
        none = torch.empty((1, 0), dtype=torch.long, device=tokens.part_positions.device)
        rows = []
        for number, key in enumerate(_keys(tokens)):
            if key not in self._rows:
                mask = None if tokens.attention_mask is None else tokens.attention_mask[number : number + 1]
                ids = tuple(ids[number : number + 1] for ids in tokens.input_ids)
                # Inference tensors could not be kept for training.
                with torch.inference_mode(False), torch.no_grad(), torch.autocast(none.device.type, enabled=False):
                    self._rows[key] = encode(TokenizedPrompts(ids, none, none, none, attention_mask=mask))
            self._rows.move_to_end(key)
            rows.append(self._rows[key])
        self._shrink(len(rows))
        return Conditioning(
            torch.cat([row.encoder_hidden_states for row in rows]),
            _joined([row.pooled_prompt_embeds for row in rows]),
            _joined([row.time_ids for row in rows]),
            _joined([row.attention_mask for row in rows]),
        )

    def clear(self) -> None:
        self._rows.clear()

    def _shrink(self, least: int) -> None:
        size = sum(_bytes(row) for row in self._rows.values())
        while size > self._capacity and len(self._rows) > least:
            size -= _bytes(self._rows.popitem(last=False)[1])


def _keys(tokens: TokenizedPrompts) -> list[tuple[object, ...]]:
    columns = [ids.tolist() for ids in tokens.input_ids]
    device = tokens.part_positions.device
    return [(device, *map(tuple, row)) for row in zip(*columns, strict=True)]


def _joined(values: list[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.cat(present) if present else None


def _bytes(row: Conditioning) -> int:
    return row.encoder_hidden_states.numel() * row.encoder_hidden_states.element_size()
