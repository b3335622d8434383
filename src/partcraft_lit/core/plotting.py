"""Matplotlib figures in one style, without pyplot: PNG and SVG whose bytes depend on their content alone."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

from partcraft_lit.core.files import atomic_write

STYLE = Path(__file__).with_name("partcraft.mplstyle")
#: On a dark page; the rest of the style stays.
_DARK = {
    "figure.facecolor": "none",
    "text.color": "e8eaee",
    "axes.labelcolor": "a0a7b4",
    "axes.edgecolor": "6b7280",
    "grid.color": "2d323b",
    "xtick.color": "6b7280",
    "xtick.labelcolor": "a0a7b4",
    "ytick.color": "6b7280",
    "ytick.labelcolor": "a0a7b4",
    "lines.markeredgecolor": "1b1e24",
}
_SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@contextmanager
def style(dark: bool = False) -> Iterator[None]:
    """The style sheet, for as long as a figure is made; matplotlib's settings are as before afterwards."""
    with matplotlib.style.context([STYLE, _DARK] if dark else [STYLE]):
        yield


def line_style(index: int) -> dict[str, Any]:
    """Colour, marker and dashes of the line in this place, by keyword of ``Axes.plot``; call it within :func:`style`.

    From the ninth on colours come again, with other markers and dashes.
    """
    cycle = list(matplotlib.rcParams["axes.prop_cycle"])
    turn, place = divmod(index, len(cycle))
    other = cycle[(place + turn) % len(cycle)]
    return {**cycle[place], "marker": other["marker"], "linestyle": other["linestyle"]}


def encode_figure(
    figure: Figure, kind: Literal["png", "svg"], title: str = "", metadata: Mapping[str, object] | None = None
) -> bytes:
    """The bytes of a figure: no date, no version and no random id are in them.

    Args:
        figure: made within :func:`style`.
        kind: of file.
        title: is stored in the file.
        metadata: further text chunks of a PNG.
    """
    stored: dict[str, str | None] = {"Title": title}
    if kind == "svg":
        stored |= {"Creator": "partcraft-lit", "Date": None}
    else:
        stored |= {"Software": "partcraft-lit", **{key: str(value) for key, value in (metadata or {}).items()}}
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format=kind, metadata=stored)
    return buffer.getvalue()


def save_figure(
    path: Path | str, figure: Figure, title: str = "", metadata: Mapping[str, object] | None = None
) -> Path:
    """Writes ``path``, a PNG, and the same as SVG beside it, each atomically; returns the path of the PNG."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, encode_figure(figure, "png", title, metadata))
    atomic_write(path.with_suffix(".svg"), encode_figure(figure, "svg", title))
    return path


def number(value: float) -> str:
    """Three significant digits, "12k" and "1M" for large numbers, no "e" where it can be helped."""
    if not math.isfinite(value):
        return "–"
    rounded = float(f"{value:.3g}")
    size = abs(rounded)
    if size == 0:
        return "0"
    if size >= 1e15 or size < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+", "e")
    if size >= 10_000:
        unit, suffix = next((unit, suffix) for unit, suffix in _SUFFIXES if size >= unit)
        return f"{rounded / unit:g}{suffix}"
    if size >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{rounded:g}"
