"""Part-level personalisation of text-to-image models.

``import partcraft_lit as pc; run = pc.open_run()`` opens a trained run; see :mod:`partcraft_lit.composer`. Names are
imported when they are used, so that importing the package loads nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from partcraft_lit.composer.base import Composer
    from partcraft_lit.composer.catalog import Part, Variant
    from partcraft_lit.composer.composition import Composition, PartChoice
    from partcraft_lit.composer.exported import ExportedParts
    from partcraft_lit.composer.results import PartReading, Result
    from partcraft_lit.composer.run import Run, open_run
    from partcraft_lit.composer.stored_parts import ImageInfo, Images
    from partcraft_lit.composer.views import ImageView
    from partcraft_lit.core.errors import UserError
    from partcraft_lit.parts.corrections import Corrections

__version__ = "0.1.0"
__all__ = [
    "Composer",
    "Composition",
    "Corrections",
    "ExportedParts",
    "ImageInfo",
    "ImageView",
    "Images",
    "Part",
    "PartChoice",
    "PartReading",
    "Result",
    "Run",
    "UserError",
    "Variant",
    "open_run",
]

_HOMES = {
    "Composer": "composer.base",
    "ExportedParts": "composer.exported",
    "ImageInfo": "composer.stored_parts",
    "Images": "composer.stored_parts",
    "Part": "composer.catalog",
    "Variant": "composer.catalog",
    "Composition": "composer.composition",
    "PartChoice": "composer.composition",
    "PartReading": "composer.results",
    "Result": "composer.results",
    "Run": "composer.run",
    "open_run": "composer.run",
    "ImageView": "composer.views",
    "UserError": "core.errors",
    "Corrections": "parts.corrections",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'partcraft_lit' has no attribute {name!r}")
    return getattr(importlib.import_module(f"partcraft_lit.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
