"""Numbers and images that a second start of a run finds in the store, where it would compute them again."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.store import Store, stable_hash

_log = logging.getLogger(__name__)


def cached_values(store: Store, kind: str, about: Any, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """Plain values, computed once.

    Args:
        store: where they are kept, as JSON.
        kind: what they are.
        about: all that decides them, in plain values.
        compute: makes them; NaN and infinity are kept.
    """
    key = stable_hash(kind, about)
    entry = store.get(kind, key)
    if entry is not None:
        try:
            cached: dict[str, Any] = json.loads(_as_bytes(entry["json"]))
        except (KeyError, ValueError) as error:
            _log.warning("What the store holds as %s cannot be read, and is computed again: %s", kind, error)
        else:
            return cached
    values = dict(compute())
    store.put(kind, key, {"json": _as_tensor(json.dumps(values).encode())})
    return values


def cached_file(store: Store, kind: str, about: Any, path: Path, draw: Callable[[], object]) -> None:
    """A file that ``draw`` writes to ``path``; taken from the store where an equal one is."""
    key = stable_hash(kind, about)
    entry = store.get(kind, key)
    if entry is not None and "file" in entry:
        atomic_write(path, _as_bytes(entry["file"]))
        return
    draw()
    store.put(kind, key, {"file": _as_tensor(path.read_bytes())})


def cached_image(store: Store, kind: str, about: Any, draw: Callable[[], Tensor]) -> Tensor:
    """(3, height, width) uint8, drawn once."""
    key = stable_hash(kind, about)
    entry = store.get(kind, key)
    if entry is not None and "picture" in entry:
        return entry["picture"]
    image = draw()
    store.put(kind, key, {"picture": image})
    return image


def _as_tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _as_bytes(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()
