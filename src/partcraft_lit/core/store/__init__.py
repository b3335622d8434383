"""A content-addressed cache of what is computed once from images and frozen networks.

A key hashes everything that determines the value (bytes of the file, weights of the network, transform), so entries are
never stale. Several processes may read and write at once: entries appear atomically, carry a checksum, and are
recomputed if damaged.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from partcraft_lit.core import environment
from partcraft_lit.core.files import explain_disk_errors
from partcraft_lit.core.store.packs import PackIndex, PackWriter, read

logger = logging.getLogger(__name__)

_KIND = re.compile(r"[a-z0-9_]+")
_KEY = re.compile(r"[0-9a-f]{16,128}")

Entry = dict[str, Tensor]

#: Seconds between two looks at what other processes have written.
_LOOK_EVERY_S = 0.25


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
    """Named tensors by kind and key, in pack files (``store.packs``).

    Each process appends to its own files and reads those of all. Picklable.

    Args:
        root: folder of the store; made when first written to. None is the user's cache folder.
    """

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = Path(root).expanduser() if root is not None else default_root()
        self._writers: dict[str, PackWriter] = {}
        self._indices: dict[str, PackIndex] = {}

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "_writers": {}, "_indices": {}}  # files are of one process

    def get(self, kind: str, key: str) -> Entry | None:
        """The tensors of an entry, or None if there is none or it is damaged (which is logged)."""
        _check_names(kind, key)
        found = self._read(kind, key)
        if found is None:
            self._index(kind).refresh()
            found = self._read(kind, key)
        return found

    def put(self, kind: str, key: str, tensors: Entry) -> None:
        """Writes an entry; an older one under the key is replaced.

        Raises:
            UserError: if the disk is full or the folder cannot be written to.
        """
        _check_names(kind, key)
        # No waiting for the disk: the checksum finds what a power cut left behind, and waiting costs more than the work
        # itself where entries are small.
        with explain_disk_errors(self.root / kind):
            place = self._writer(kind).append(key, pack(tensors, kind, key))
        self._index(kind).add(key, place)

    def entries(self, kind: str) -> list[str]:
        """Keys of a kind, damaged or not, in no particular order."""
        index = self._index(kind)
        index.refresh()
        return list(index)

    def kinds(self) -> list[str]:
        """Names of all kinds."""
        if not self.root.is_dir():
            return []
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and _KIND.fullmatch(path.name))

    def _written_meanwhile(self, kind: str, keys: list[str]) -> dict[str, Entry]:
        """Entries that another process has computed since the start."""
        index = self._index(kind)
        index.refresh()
        found = {key: self._read(kind, key) for key in keys if key in index}
        return {key: entry for key, entry in found.items() if entry is not None}

    def _read(self, kind: str, key: str) -> Entry | None:
        for place in self._index(kind).places(key):
            try:
                return unpack(read(place), kind, key)
            except FileNotFoundError:  # pruned by another process, which wrote what it kept elsewhere
                self._indices[kind] = PackIndex(self.root / kind)
                self._indices[kind].refresh()
                return self._read(kind, key) if key in self._indices[kind] else None
            except Damaged as error:
                self._indices[kind].drop(key, place)
                logger.warning(
                    "A stored entry is damaged and will be computed again: %s in %s (%s)", key, place.path, error
                )
        return None

    def _index(self, kind: str) -> PackIndex:
        if kind not in self._indices:
            self._indices[kind] = PackIndex(self.root / kind)
        return self._indices[kind]

    def _writer(self, kind: str) -> PackWriter:
        writer = self._writers.get(kind)
        if writer is None or writer.process != os.getpid():  # a forked process must not write into its parent's file
            writer = self._writers[kind] = PackWriter(self.root / kind)
        return writer

    def fill(
        self,
        kind: str,
        keys: Sequence[str],
        compute: Callable[[list[int]], Iterable[Entry]],
        batch_size: int,
        progress: Callable[[int, int], None] | None = None,
        on_entry: Callable[[int, Entry], None] | None = None,
        share: Sequence[int] | None = None,
        patience_s: float = 0.0,
    ) -> int:
        """Computes missing or damaged entries, each key once; holds one batch in memory.

        Entries are written as they arrive, so an interruption loses at most one batch. Batches are fixed blocks of
        ``keys``, less what is there, since a network's output differs in its last bit with the other items of a batch.
        Processes of a run share the blocks (``turns``), and each skips what others have written. Nobody waits for
        another without end: what one has left, because it is slow or dead, the others compute.

        Args:
            kind: what the entries are, for instance "latents".
            keys: one key per item; equal keys mean equal values.
            compute: positions in ``keys`` -> one entry for each, in that order; lazily if it can.
            batch_size: positions in a block: most that are given to ``compute`` at once.
            progress: called with (number ready, number of keys).
            on_entry: called once for each position with its entry, in no particular order.
            share: blocks that this process takes first, because they cost it less; by default its part of all.
            patience_s: seconds without news from the others, after which it takes over theirs.

        Returns:
            How many entries were computed.
        """
        positions: dict[str, list[int]] = {}
        blocks: list[list[str]] = [[] for _ in range(0, len(keys), batch_size)]
        for position, key in enumerate(keys):
            if key not in positions:
                blocks[position // batch_size].append(key)
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

        missing: set[str] = set()
        self._index(kind).refresh()
        for key in positions:
            _check_names(kind, key)
            entry = self._read(kind, key)
            if entry is None:
                missing.add(key)
            else:
                ready(key, entry)

        def look(wanted: list[str]) -> list[str]:
            """Takes what others have written meanwhile; returns what is still missing."""
            found = self._written_meanwhile(kind, wanted) if wanted else {}
            for key, entry in found.items():
                ready(key, entry)
            missing.difference_update(found)
            return [key for key in wanted if key not in found]

        computed = 0
        own, others = turns(len(blocks), share)
        for place, number in enumerate([*own, *others]):
            if place == len(own) and patience_s and environment.position()[1] > 1:
                _wait_until_stalled(lambda: len(look(list(missing))), patience_s)
            batch = look([key for key in blocks[number] if key in missing])
            computed += len(batch)
            if batch:
                for key, entry in zip(batch, compute([positions[key][0] for key in batch]), strict=True):
                    self.put(kind, key, entry)
                    ready(key, entry)
                missing.difference_update(batch)
        return computed


def _check_names(kind: str, key: str) -> None:
    if not _KIND.fullmatch(kind):
        raise ValueError(f"kind must be lower-case letters, digits and underscores, got {kind!r}.")
    if not _KEY.fullmatch(key):
        raise ValueError(f"key must be hexadecimal digits, 16 to 128 of them, got {key!r}; make it by stable_hash.")


def turns(number: int, share: Sequence[int] | None = None) -> tuple[Sequence[int], Sequence[int]]:
    """Which of ``number`` blocks of work this process of a run takes first, and in which order those of the others.

    The latter is an order of its own, so that those that are done do not all help out with the same block.
    """
    rank, world = environment.position()
    own = range(rank * number // world, (rank + 1) * number // world) if share is None else share
    others = sorted(set(range(number)).difference(own))
    random.Random(rank).shuffle(others)
    return own, others


def _wait_until_stalled(missing: Callable[[], int], patience_s: float) -> None:
    """Waits until nothing is missing, or as much has been missing for some seconds."""
    left, since = missing(), time.monotonic()
    while left and time.monotonic() - since < patience_s:
        time.sleep(min(_LOOK_EVERY_S, patience_s))
        now = missing()
        if now < left:
            left, since = now, time.monotonic()


class Damaged(Exception):
    """The bytes of an entry are not what was written."""


def pack(tensors: Entry, kind: str, key: str) -> bytes:
    # Copies, since safetensors refuses tensors that share memory, as slices of one batch do.
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    return save(tensors, metadata={"kind": kind, "key": key, "checksum": _checksum(tensors)})


def unpack(content: bytes, kind: str, key: str) -> Entry:
    try:
        metadata = _metadata(content)
        tensors = load(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise Damaged(f"{len(content)} bytes, {error}") from error
    if (metadata.get("kind"), metadata.get("key")) != (kind, key):
        raise Damaged("it belongs under another name")
    if metadata.get("checksum") != _checksum(tensors):
        raise Damaged("its checksum differs")
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
