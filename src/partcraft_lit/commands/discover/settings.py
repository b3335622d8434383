"""Settings of ``partcraft discover``."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.core.settings import PathSettings, Seed
from partcraft_lit.parts.settings import PartsSettings


@dataclass(frozen=True)
class DiscoverSettings:
    """``partcraft discover``."""

    seed: Seed
    parts: PartsSettings
    paths: PathSettings
