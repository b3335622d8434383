"""Settings of ``partcraft store``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import NonNegative, PathSettings


@dataclass(frozen=True)
class StoreSettings:
    """``partcraft store``.

    Attributes:
        action: "stats" says what there is, "verify" reads everything and names what is damaged, "prune" makes room.
        kind: of what entries; None for all kinds.
        older_than_days: prune also drops what was written before; None drops only what is of no use.
        idle_minutes: prune leaves files alone that were written to since: their process may still run.
        paths: where the store is.
    """

    action: Literal["stats", "verify", "prune"]
    kind: str | None
    older_than_days: NonNegative | None
    idle_minutes: NonNegative
    paths: PathSettings
