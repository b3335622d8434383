"""Dataclasses of tensors that move to a device or a process as one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

#: Alignment of tensors in a buffer, in bytes; at least the size of any dtype.
_ALIGNMENT = 64


class Movable:
    """Moves every tensor of a dataclass, also inside nested dataclasses and tuples."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Called by a loader with ``pin_memory=True``, which skips types without this method silently."""
        return self._map(lambda value: value.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Self:
        mapped: Self = _mapped(self, Tensor, function)
        return mapped


def packed(value: Movable) -> tuple[Tensor, dict[str, Any]]:
    """Packs all tensors of a dataclass into one CPU buffer; also returns the other fields with the tensors' positions.

    ``unpacked`` restores the tensors as views of the buffer.
    """
    pieces: list[tuple[_Place, Tensor]] = []

    def put(tensor: Tensor) -> _Place:
        place = _Place(pieces[-1][0].next_start if pieces else 0, tensor.shape, tensor.dtype)
        pieces.append((place, tensor))
        return place

    outline = {f.name: _mapped(getattr(value, f.name), Tensor, put) for f in fields(value)}  # type: ignore[arg-type]
    buffer = torch.empty(pieces[-1][0].end if pieces else 0, dtype=torch.uint8)
    for place, tensor in pieces:
        place.read(buffer).copy_(tensor)
    return buffer, outline


def unpacked(kind: type[T], buffer: Tensor, outline: dict[str, Any]) -> T:
    """Inverse of ``packed``."""
    return kind(**{name: _mapped(value, _Place, lambda place: place.read(buffer)) for name, value in outline.items()})


@dataclass(frozen=True)
class _Place:
    """Position, shape and dtype of a tensor in a byte buffer."""

    start: int
    shape: torch.Size
    dtype: torch.dtype

    @property
    def end(self) -> int:
        return self.start + self.shape.numel() * self.dtype.itemsize

    @property
    def next_start(self) -> int:
        return -(-self.end // _ALIGNMENT) * _ALIGNMENT

    def read(self, buffer: Tensor) -> Tensor:
        return buffer[self.start : self.end].view(self.dtype).view(self.shape)


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Applies a function to all values of a type, recursing into dataclasses and tuples."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, Movable):
        return replace(value, **{f.name: _mapped(getattr(value, f.name), kind, function) for f in fields(value)})  # type: ignore[type-var,arg-type]
    if isinstance(value, tuple):
        return tuple(_mapped(item, kind, function) for item in value)
    return value
