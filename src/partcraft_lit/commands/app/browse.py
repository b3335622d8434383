"""What the Pick screen asks: images of a run, their parts as small maps, crops and thumbnails."""

from __future__ import annotations

import base64
import io
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping
from typing import TYPE_CHECKING, Any

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import ABSENT

if TYPE_CHECKING:
    from PIL import Image

    from partcraft_lit.composer.run import Run
    from partcraft_lit.composer.views import ImageView

#: Sides in pixels.
TILE, LARGE, CROP = 224, 840, 128
#: Images of one question at most.
MAX_PAGE, MAX_TILES = 200, 24


class Cache:
    """The newest answers, up to so many bytes; for any number of threads."""

    def __init__(self, max_bytes: int = 48 << 20) -> None:
        self.max_bytes = max_bytes
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        with self._lock:
            if (found := self._kept.get(key)) is not None:
                self._kept.move_to_end(key)
                return found
        made = make()
        with self._lock:
            self._bytes += len(made) - len(self._kept.pop(key, b""))
            self._kept[key] = made
            while self._bytes > self.max_bytes and len(self._kept) > 1:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def describe(run: Run, name: str) -> dict[str, Any]:
    """All that the page needs to know of a run."""
    return {
        "name": name,
        "noun": getattr(run, "class_noun", "") or "creation",
        "images": run.has_images,
        "parts": [
            {
                "index": part.index,
                "name": part.name,
                "color": part.color,
                "variants": [
                    {"code": variant.code, "count": variant.count or 0, "trained": variant.trained}
                    for variant in part.variants
                    if variant.count or variant.count is None
                ],
            }
            for part in run.parts
        ],
    }


def page(run: Run, *, offset: int, limit: int, text: str, part: int | None, code: int | None) -> dict[str, Any]:
    """A page of the images that show a part and whose name holds a text; mixed, unless one kind or name is looked for.

    Raises:
        UserError: for a part that the run does not have.
    """
    if part is not None and not 0 <= part < len(run.parts):
        raise UserError(f"This model has no part {part}.")
    if not run.has_images:
        return {"total": 0, "images": []}
    names = [other.name for other in run.parts]
    found = run.images(part=None if part is None else names[part], code=code, text=text.strip()[:100] or None)
    places = range(max(offset, 0), min(max(offset, 0) + min(max(limit, 0), MAX_PAGE), len(found)))
    stride = 1 if text.strip() or code is not None else _stride(len(found))
    shown = [found[place * stride % len(found)] for place in places]
    return {
        "total": len(found),
        "images": [
            {"index": info.index, "name": info.name, "codes": [info.codes.get(name, ABSENT) for name in names]}
            for info in shown
        ],
    }


def _stride(number: int) -> int:
    """Steps through ``number`` images that meet each of them once, and neighbours, often of one class, far apart."""
    stride = max(round(number * 0.618), 1)
    while math.gcd(stride, number) != 1:
        stride += 1
    return stride


def tile(view: ImageView) -> dict[str, Any]:
    """A small image with its label map, as the wall shows it."""
    height, width = view.label_map.shape
    return {
        "thumb": data_uri(view.thumbnail(TILE)),
        "width": view.size[0],
        "height": view.size[1],
        "window": kept(view),
        "map": {"w": int(width), "h": int(height), "data": base64.b64encode(view.label_map.tobytes()).decode()},
    }


def kept(view: ImageView) -> tuple[float, float, float, float]:
    """Left, top, width and height of what the label map covers, as shares of the image."""
    from partcraft_lit.core.images import kept_window

    width, height = view.size
    top, left, high, wide = kept_window(height, width)
    return left / width, top / height, wide / width, high / height


def jpeg(image: Image.Image, quality: int = 86) -> bytes:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def data_uri(image: Image.Image) -> str:
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg(image)).decode()}"


def choices_of(run: Run, values: list[Mapping[str, Any]]) -> list[tuple[str, int, float]]:
    """Parts by number, as the page names them, to parts by name.

    Raises:
        UserError: for what is not in the run.
    """
    chosen = []
    for value in values:
        part, code = int(value["part"]), int(value["code"])
        if not 0 <= part < len(run.parts):
            raise UserError(f"This model has no part {part}.")
        variant = run.parts[part][code]
        chosen.append((variant.part, code, float(value.get("weight", 1.0))))
    return chosen
