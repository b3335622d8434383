"""Statistics, verification and pruning of a store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from partcraft_lit.core.files import explain_disk_errors
from partcraft_lit.core.store import Damaged, Store, pack, unpack
from partcraft_lit.core.store.packs import PackWriter, Place, packs, read, records


def statistics(store: Store, kind: str) -> dict[str, int]:
    """Entries, files and bytes of a kind, and how many of the bytes are superseded."""
    files = packs(store.root / kind)
    used = {key: place.size for path in packs(store.root / kind) for key, place in records(path)}
    total = sum(path.stat().st_size for path in files)
    heads = sum(1 for path in packs(store.root / kind) for _ in records(path)) * _HEAD
    return {
        "entries": len(store.entries(kind)),
        "files": len(files),
        "bytes": total,
        "superseded": max(total - sum(used.values()) - heads, 0),
    }


#: Bytes of a record beside its body, about.
_HEAD = 150


def find_damage(store: Store, kind: str, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Verifies the checksums of all records of a kind; returns the damaged ones."""
    places = list(_records(store, kind))
    damaged = []
    for number, (key, place) in enumerate(places):
        if not _is_whole(kind, key, place):
            damaged.append(f"{key} in {place.path}")
        if progress is not None:
            progress(number + 1, len(places))
    return damaged


def prune(store: Store, kind: str, older_than_s: float | None = None, idle_s: float = 600.0) -> int:
    """Repacks intact, wanted entries into one new file and removes the old ones.

    Other processes may read and write meanwhile: files modified within ``idle_s`` are left alone, and a reader whose
    file is gone refreshes its index.

    Args:
        store: the store.
        kind: of the entries.
        older_than_s: drop entries older than this; None keeps all ages.
        idle_s: see above.

    Returns:
        Freed bytes.

    Raises:
        UserError: if the disk is too full for the new pack; nothing is removed then.
    """
    now = time.time()
    old = {path: path.stat() for path in packs(store.root / kind) if now - path.stat().st_mtime >= idle_s}
    before = sum(stat.st_size for stat in old.values())
    wanted: dict[str, Place] = {}
    for path in old:
        for key, place in records(path):
            if _is_whole(kind, key, place):
                wanted[key] = place  # the youngest file comes last
    if older_than_s is not None:
        wanted = {key: place for key, place in wanted.items() if now - place.written < older_than_s}
    writer = PackWriter(store.root / kind)
    after = 0
    with explain_disk_errors(store.root / kind):
        for key, place in wanted.items():
            with suppress(Damaged):
                after += writer.append(key, pack(unpack(read(place), kind, key), kind, key), place.written).size + _HEAD
        writer.sync()
    writer.close()
    for path, stat in old.items():
        if path.stat().st_size == stat.st_size:  # else its writer has become active again
            path.unlink()
    return max(before - after, 0)


def _records(store: Store, kind: str) -> Iterator[tuple[str, Place]]:
    for path in packs(store.root / kind):
        yield from records(path)


def _is_whole(kind: str, key: str, place: Place) -> bool:
    try:
        unpack(read(place), kind, key)
    except (Damaged, FileNotFoundError):
        return False
    return True
