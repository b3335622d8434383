"""The parts of a folder of images, or of any other data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import ImageSource, PatchFeatures
from partcraft_lit.parts.corrected_discovery import CorrectionSources
from partcraft_lit.runs.discovery import discover_into, write_rejected
from partcraft_lit.runs.settings import DiscoverSettings


def discover(
    settings: DiscoverSettings,
    folder: Path,
    *,
    source: ImageSource,
    load_features: Callable[[], PatchFeatures],
    corrections: CorrectionSources | None = None,
) -> dict[str, Any]:
    """``partcraft discover``: writes ``parts/`` into the run folder.

    Several processes share the work over the store, and the first of them writes.

    Args:
        settings: of the discovery.
        folder: run folder.
        source: the images.
        load_features: loads the network that describes patches.
        corrections: of the parts.

    Returns:
        The discovery's report, as plain values.
    """
    stages = Stages()
    if is_first_process():
        write_rejected(source, folder, stages)
    features = load_features()
    store = Store(settings.paths.store)
    _, metadata = discover_into(folder, settings.parts, settings.seed, source, features, store, stages, corrections)
    stages.log(f"Parts: {folder / 'parts' / 'atlas.png'}")
    return metadata
