"""Pieces of HTML that several sections of the report share."""

from __future__ import annotations

import math
from html import escape


def header(title: str, explained: str) -> str:
    """Head of a section."""
    return f"<header><h2>{escape(title)}</h2>{f'<p>{escape(explained)}</p>' if explained else ''}</header>"


def score(value: float | None) -> str:
    """Three decimals; a dash for nothing."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"
