"""Discovery with the settings of ``conf/parts``, but for what a test changes."""

from __future__ import annotations

from typing import Any

from partcraft_lit.config import sources, stored
from partcraft_lit.config.validation import validate
from partcraft_lit.core.types import ImageSource, PatchFeatures
from partcraft_lit.parts import dataset_parts as annotated
from partcraft_lit.parts import discovery
from partcraft_lit.parts.settings import PartsSettings

_ARGUMENTS = ("seed", "batch_size", "cache_bytes", "store", "progress")


def parts_settings(**changes: Any) -> PartsSettings:
    """``conf/parts/default.yaml`` with changes."""
    return validate(stored.load(sources.conf_dir() / "parts" / "default.yaml") | changes, PartsSettings, "parts")


def discover(source: ImageSource, features: PatchFeatures, **changes: Any) -> discovery.Discovery:
    """Arguments of ``discover`` and changes of its settings, together."""
    arguments = {name: changes.pop(name) for name in _ARGUMENTS if name in changes}
    return discovery.discover(source, features, parts_settings(**changes), **({"seed": 0} | arguments))


def dataset_parts(images: ImageSource, features: PatchFeatures, **changes: Any) -> discovery.Discovery:
    """Parts that the data set has, likewise; M is their number."""
    names = images.part_names if changes["source"] == "masks" else images.class_names  # type: ignore[attr-defined]
    return annotated.dataset_parts(images, features, parts_settings(**({"M": len(names)} | changes)), seed=0)
