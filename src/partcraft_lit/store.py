"""The store: what is computed once from images and frozen networks, found again by what it was computed from.

A key is a hash of everything that decides the value (bytes of the file, weights of the network, transform), so an entry
never goes out of date. Several processes may read and write at once: an entry appears in one step, carries a checksum,
and is computed again if it is damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from partcraft_lit.files import atomic_write

logger = logging.getLogger(__name__)

_KIND = re.compile(r"[a-z0-9_]+")
_KEY = re.compile(r"[0-9a-f]{16,128}")

Entry = dict[str, Tensor]


def default_root() -> Path:
    """The user's cache folder, as the system defines it."""
    return platformdirs.user_cache_path("partcraft_lit") / "store"


def stable_hash(*parts: Any) -> str:
    """SHA-256 of JSON-like values, equal on every machine: 64 hexadecimal digits.

    Args:
        parts: strings, numbers, booleans, None, and lists, tuples and dicts (with string keys) of them.

    Raises:
        TypeError: for anything else, whose text might differ between runs.
        ValueError: for NaN and infinity, which JSON has no word for.
    """
    text = json.dumps([_plain(part) for part in parts], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise TypeError(
        f"stable_hash takes plain values (text, numbers, lists, dicts with text keys), got {type(value).__name__}: "
        f"{value!r}; turn it into one of those first."
    )


class Store:
    """Named tensors by kind and key, one safetensors file per entry.

    Args:
        root: folder of the store; made when first written to. None is the user's cache folder.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser() if root is not None else default_root()

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def get(self, kind: str, key: str) -> Entry | None:
        """The tensors of an entry, or None if there is none or it is damaged (which is logged)."""
        path = self._path(kind, key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return _unpack(content, kind, key)
        except _Damaged as error:
            logger.warning("A stored entry is damaged and will be computed again: %s (%s)", path, error)
            return None

    def put(self, kind: str, key: str, tensors: Entry) -> None:
        """Writes an entry; an older one under the key is replaced.

        Raises:
            UserError: if the disk is full or the folder cannot be written to.
        """
        # No waiting for the disk: the checksum finds what a power cut left behind, and waiting costs more than the work
        # itself where entries are small.
        atomic_write(self._path(kind, key), _pack(tensors, kind, key), sync=False)

    def fill(
        self,
        kind: str,
        keys: Sequence[str],
        compute: Callable[[list[int]], Iterable[Entry]],
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
        on_entry: Callable[[int, Entry], None] | None = None,
    ) -> int:
        """Computes the entries that are missing or damaged, each key once; holds one batch in memory.

        Each entry is written as soon as it comes, so an interruption loses one batch at most.

        Args:
            kind: what the entries are, for instance "latents".
            keys: one key per item; equal keys mean equal values.
            compute: positions in ``keys`` -> one entry for each, in that order; lazily if it can.
            batch_size: most positions given to ``compute`` at once.
            progress: called with (number ready, number of keys).
            on_entry: called once for each position with its entry, in no particular order.

        Returns:
            How many entries were computed.
        """
        positions: dict[str, list[int]] = {}
        for position, key in enumerate(keys):
            positions.setdefault(key, []).append(position)
        done = 0

        def ready(key: str, entry: Entry) -> None:
            nonlocal done
            for position in positions[key]:
                if on_entry is not None:
                    on_entry(position, entry)
            done += len(positions[key])
            if progress is not None:
                progress(done, len(keys))

        missing: list[str] = []
        for key in positions:
            entry = self.get(kind, key)
            if entry is None:
                missing.append(key)
            else:
                ready(key, entry)
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for key, entry in zip(batch, compute([positions[key][0] for key in batch]), strict=True):
                self.put(kind, key, entry)
                ready(key, entry)
        return len(missing)

    def get_or_compute_many(
        self,
        kind: str,
        keys: Sequence[str],
        compute: Callable[[list[int]], Iterable[Entry]],
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Entry]:
        """One entry per key, in order, computing what is missing; arguments as in `fill`.

        All of them are in memory at the end: use `fill` and `get` for large entries.
        """
        entries: list[Entry] = [{}] * len(keys)
        self.fill(kind, keys, compute, batch_size, progress, on_entry=entries.__setitem__)
        return entries

    def _path(self, kind: str, key: str) -> Path:
        if not _KIND.fullmatch(kind):
            raise ValueError(f"kind must be lower-case letters, digits and underscores, got {kind!r}.")
        if not _KEY.fullmatch(key):
            raise ValueError(f"key must be hexadecimal digits, 16 to 128 of them, got {key!r}; make it by stable_hash.")
        return self.root / kind / key[:2] / f"{key}.safetensors"


class _Damaged(Exception):
    pass


def _pack(tensors: Entry, kind: str, key: str) -> bytes:
    # Copies, since safetensors refuses tensors that share memory, as slices of one batch do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return save(tensors, metadata={"kind": kind, "key": key, "checksum": _checksum(tensors)})


def _unpack(content: bytes, kind: str, key: str) -> Entry:
    try:
        metadata = _metadata(content)
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _Damaged(f"{len(content)} bytes, {error}") from error
    if (metadata.get("kind"), metadata.get("key")) != (kind, key):
        raise _Damaged("it belongs under another name")
    if metadata.get("checksum") != _checksum(tensors):
        raise _Damaged("its checksum differs")
    return tensors


def _metadata(content: bytes) -> dict[str, str]:
    # A safetensors file is 8 bytes of header length, a JSON header, and the data.
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    if not isinstance(metadata, dict):
        raise ValueError("no metadata")
    return metadata


def _checksum(tensors: Entry) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
