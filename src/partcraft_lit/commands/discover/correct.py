"""``partcraft discover run=RUN``: corrections of a run that exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from partcraft_lit.core.progress import Stages
from partcraft_lit.core.types import ImageSource, PatchFeatures
from partcraft_lit.runs.correcting import RunCorrector
from partcraft_lit.runs.settings import DiscoverSettings


def correct(
    settings: DiscoverSettings,
    run_folder: Path,
    *,
    source: ImageSource,
    load_features: Callable[[], PatchFeatures],
) -> Sequence[str]:
    """``partcraft discover run=RUN``: applies the run's ``parts.yaml`` to the run, in place.

    Returns:
        What it changed, in sentences.
    """
    stages = Stages()
    effect = RunCorrector(run_folder, settings, source, load_features, stages).apply()
    lines = effect.lines()
    for line in lines:
        stages.log(f"  {line}")
    stages.log(f"Parts: {run_folder / 'parts' / 'atlas.png'}")
    return lines
