"""``partcraft store``: statistics, verification and pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from partcraft_lit.commands.store.settings import StoreSettings
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store
from partcraft_lit.core.store.maintenance import find_damage, prune, statistics

_COUNTS = ("entries", "files", "bytes", "superseded")
_COLUMNS = ("entries", "files", "MB", "superseded MB")


def maintain_store(settings: StoreSettings) -> dict[str, Any]:
    """Runs ``settings.action``; returns the numbers it printed.

    Raises:
        UserError: if there is no such kind.
    """
    stages, store = Stages(), Store(settings.paths.store)
    if store.root.exists() and not store.root.is_dir():
        raise UserError(f"paths.store={store.root} is a file; a store is a folder.")
    kinds = store.kinds()
    if settings.kind is not None and settings.kind not in kinds:
        raise UserError(f"kind={settings.kind}: {store.root} has none. {did_you_mean(settings.kind, kinds)}".rstrip())
    kinds = kinds if settings.kind is None else [settings.kind]
    stages.log(f"Store: {store.root}" + ("" if store.root.exists() else " (there is no such folder yet)"))
    if settings.action == "verify":
        return _verify(store, kinds, stages)
    if settings.action == "prune":
        age = None if settings.older_than_days is None else settings.older_than_days * 86400
        freed = sum(prune(store, kind, older_than_s=age, idle_s=settings.idle_minutes * 60) for kind in kinds)
        stages.log(f"Freed {freed / 1e6:.1f} MB.")
        return {"freed_bytes": freed} | _stats(store, kinds, stages)
    return _stats(store, kinds, stages)


def _stats(store: Store, kinds: list[str], stages: Stages) -> dict[str, Any]:
    by_kind = {kind: statistics(store, kind) for kind in kinds}
    stages.log(f"{'':<16}" + "".join(f"{column:>15}" for column in _COLUMNS))
    for kind, counts in by_kind.items():
        stages.log(_row(kind, counts))
    total = {name: sum(counts[name] for counts in by_kind.values()) for name in _COUNTS}
    stages.log(_row("all", total))
    return {"kinds": by_kind, **total}


def _row(name: str, counts: Mapping[str, int]) -> str:
    entries, files, size, superseded = (counts[name] for name in _COUNTS)
    numbers = f"{entries:>15,}{files:>15,}{size / 1e6:>15.1f}{superseded / 1e6:>15.1f}"
    return f"{name:<16}{numbers}"


def _verify(store: Store, kinds: list[str], stages: Stages) -> dict[str, Any]:
    damaged: list[str] = []
    checked = 0
    for kind in kinds:
        with stages.stage(f"verify {kind}") as counter:
            found = find_damage(store, kind, counter.count)
        checked += len(store.entries(kind))
        damaged += [f"{kind} {name}" for name in found]
    for name in damaged:
        stages.log(f"  damaged: {name}")
    stages.log(
        f"{checked:,} entries read, {len(damaged)} damaged."
        + (" They are computed again where they are needed; `partcraft store prune` removes them." if damaged else "")
    )
    return {"entries": checked, "damaged": damaged}
