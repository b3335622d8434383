"""Settings of ``partcraft store``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import NonNegative, PathSettings


@dataclass(frozen=True)
class StoreSettings:
    """``partcraft store``.

    Attributes:
        action: "stats" prints a summary, "verify" checks all entries, "prune" removes damaged and superseded ones.
        kind: of the entries; None for all kinds.
        older_than_days: prune also drops older entries; None keeps all ages.
        idle_minutes: prune skips files modified within this time: their process may still run.
        paths: location of the store.
    """

    action: Literal["stats", "verify", "prune"]
    kind: str | None
    older_than_days: NonNegative | None
    idle_minutes: NonNegative
    paths: PathSettings
