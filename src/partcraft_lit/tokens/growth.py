"""Checkpoints of a token mapper with fewer parts or codes, made to fit one with more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Tables of the mapper whose rows are parts, and in the first case columns codes.
_TABLES = ("mapper.codes", "mapper.position")


def grow(checkpoint: Mapping[str, Any], parameters: Mapping[str, nn.Parameter], order: Sequence[nn.Parameter]) -> None:
    """Rows that the checkpoint lacks become those of the untrained module; the optimizer has seen nothing of them.

    Args:
        checkpoint: of Lightning; its ``state_dict`` and ``optimizer_states`` are changed.
        parameters: what trains, by name.
        order: the same in the order in which the optimizer numbers them.
    """
    weights = checkpoint["state_dict"]
    for name, parameter in parameters.items():
        if not name.endswith(_TABLES) or name not in weights or weights[name].shape == parameter.shape:
            continue
        former = weights[name].shape
        weights[name] = _larger(weights[name], parameter.detach().cpu())
        number = next(place for place, own in enumerate(order) if own is parameter)
        for optimizer in checkpoint.get("optimizer_states", []):
            state = optimizer["state"].get(number, {})
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == former:
                    state[key] = _larger(value, torch.zeros(parameter.shape, dtype=value.dtype))


def _larger(values: Tensor, start: Tensor) -> Tensor:
    """``start`` with ``values`` in its first rows and columns; ``values`` where they are no part of it."""
    if values.ndim != start.ndim or any(a > b for a, b in zip(values.shape, start.shape, strict=True)):
        return values
    result = start.clone()
    result[tuple(slice(size) for size in values.shape)] = values
    return result
