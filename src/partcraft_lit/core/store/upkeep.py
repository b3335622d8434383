"""Looking after a store: what is in it, what is damaged, and making room."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from partcraft_lit.core.files import mendable
from partcraft_lit.core.store import Damaged, Store, pack, unpack
from partcraft_lit.core.store.packs import PackWriter, Place, packs, read, records


def describe(store: Store, kind: str) -> dict[str, int]:
    """Entries, files and bytes of a kind, and how many of the bytes are of no use any more."""
    files = [*packs(store.root / kind), *store.single_files(kind), *_leftovers(store, kind)]
    used = {key: place.size for path in packs(store.root / kind) for key, place in records(path)}
    single = sum(path.stat().st_size for path in store.single_files(kind))
    total = sum(path.stat().st_size for path in files)
    heads = sum(1 for path in packs(store.root / kind) for _ in records(path)) * _HEAD
    return {
        "entries": len(store.entries(kind)),
        "files": len(files),
        "bytes": total,
        "superseded": max(total - single - sum(used.values()) - heads, 0),
    }


#: Bytes of a record beside its body, about.
_HEAD = 150


def find_damage(store: Store, kind: str, progress: Callable[[int, int], None] | None = None) -> list[str]:
    """Reads all records of a kind against their checksums; says which are not what was written."""
    places = [*_records(store, kind), *((path.stem, _whole(path)) for path in store.single_files(kind))]
    damaged = []
    for number, (key, place) in enumerate(places):
        if not _is_whole(kind, key, place):
            damaged.append(f"{key} in {place.path}")
        if progress is not None:
            progress(number + 1, len(places))
    return damaged


def prune(store: Store, kind: str, older_than_s: float | None = None, idle_s: float = 600.0) -> int:
    """Writes what is whole and wanted into one new pack and removes the files that held it.

    Other processes may read and write meanwhile: files that were written to within ``idle_s`` are left alone, and a
    reader whose file is gone looks again.

    Args:
        store: the store.
        kind: of what entries.
        older_than_s: entries that were written before so many seconds are dropped; None drops none for its age.
        idle_s: see above.

    Returns:
        Bytes that became free.

    Raises:
        UserError: if the disk is too full for the new pack; nothing is removed then.
    """
    now = time.time()
    old = {path: path.stat() for path in packs(store.root / kind) if now - path.stat().st_mtime >= idle_s}
    singles = {path: path.stat() for path in store.single_files(kind) if now - path.stat().st_mtime >= idle_s}
    before = sum(facts.st_size for facts in [*old.values(), *singles.values()])
    wanted = {path.stem: _whole(path) for path in singles}
    for path in old:
        for key, place in records(path):
            if _is_whole(kind, key, place):
                wanted[key] = place  # the youngest file comes last
    if older_than_s is not None:
        wanted = {key: place for key, place in wanted.items() if now - place.written < older_than_s}
    writer = PackWriter(store.root / kind)
    after = 0
    with mendable(store.root / kind):
        for key, place in wanted.items():
            with suppress(Damaged):
                after += writer.append(key, pack(unpack(read(place), kind, key), kind, key), place.written).size + _HEAD
        writer.sync()
    writer.close()
    for path, facts in {**old, **singles}.items():
        if path.stat().st_size == facts.st_size:  # else its writer has come back to life
            path.unlink()
    leftovers = [path for path in _leftovers(store, kind) if now - path.stat().st_mtime >= idle_s]
    before += sum(path.stat().st_size for path in leftovers)
    for path in leftovers:
        path.unlink(missing_ok=True)
    return max(before - after, 0)


def _records(store: Store, kind: str) -> Iterator[tuple[str, Place]]:
    for path in packs(store.root / kind):
        yield from records(path)


def _whole(path: Path) -> Place:
    facts = path.stat()
    return Place(path, 0, facts.st_size, facts.st_mtime)


def _is_whole(kind: str, key: str, place: Place) -> bool:
    try:
        unpack(read(place), kind, key)
    except (Damaged, FileNotFoundError):
        return False
    return True


def _leftovers(store: Store, kind: str) -> list[Path]:
    """What killed writers of earlier versions left behind."""
    return sorted((store.root / kind).glob("??/.*.tmp.safetensors"))
