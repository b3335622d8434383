"""The section of the report on whole pictures: how like the real ones they are, and whether they are copies."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from partcraft_lit.report.content import PictureRow
from partcraft_lit.report.pieces import header, score


@dataclass(frozen=True)
class _Metric:
    """Head of a column, the mark of its good end, and what its values are multiplied by."""

    title: str
    good: str = "↑"
    times: float = 1.0


#: In the order of the columns; others follow under their own names.
_METRICS = {
    "fid": _Metric("FID", "↓"),
    "kid": _Metric("KID × 1000", "↓", 1000),
    "likeness": _Metric("likeness"),
    "image": _Metric("likeness to the concept"),
    "text": _Metric("text, CLIPScore"),
    "clip-t": _Metric("CLIP-T"),
    "clip-score": _Metric("CLIPScore"),
    "copied": _Metric("copied", "↓"),
    "nearest": _Metric("nearest", ""),
}
#: Metric -> the one that is its standard error.
_ERRORS = {"kid": "kid_error"}


def whole_pictures(rows: Sequence[PictureRow]) -> str:
    """A table for each network; "" without any."""
    if not rows:
        return ""
    explained = (
        "FID and KID: distance to real pictures as a set; below 5,000 pictures FID is too high, and KID is the one to "
        "read. Likeness: cosine with the picture that was to come back. Copied: share as near to a training picture as "
        "the nearest of these are to each other; nearest: that distance over theirs. Small: what a perfect picture has "
        "after the autoencoder."
    )
    networks = list(dict.fromkeys(row.network for row in rows))
    tables = "".join(_table(name, [row for row in rows if row.network == name]) for name in networks)
    return header("Whole pictures", explained) + tables


def _table(network: str, rows: Sequence[PictureRow]) -> str:
    found = dict.fromkeys(key for row in rows for key in row.numbers if key not in _ERRORS.values())
    metrics = [*(key for key in _METRICS if key in found), *(key for key in found if key not in _METRICS)]
    heads = "".join(f'<th class="num">{_head(key)}</th>' for key in metrics)
    body = "".join(
        f"<tr><th>{escape(row.protocol)}</th>{''.join(_cell(key, row) for key in metrics)}</tr>" for row in rows
    )
    return (
        f'<h3 class="sub">By {escape(network)}</h3><div class="card scores scroll"><table><thead><tr><th>asked for</th>'
        f"{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _head(key: str) -> str:
    metric = _METRICS.get(key, _Metric(key, ""))
    return escape(f"{metric.title} {metric.good}".rstrip())


def _cell(key: str, row: PictureRow) -> str:
    times = _METRICS.get(key, _Metric(key)).times
    error = row.numbers.get(_ERRORS.get(key, ""))
    margin = "" if error is None else f" ± {score(times * error)}"
    ceiling = _ceiling(key, times, row.ceiling)
    return f'<td class="num"><b>{score(_times(row.numbers.get(key), times))}</b>{margin}{ceiling}</td>'


def _ceiling(key: str, times: float, ceiling: Mapping[str, float]) -> str:
    value = _times(ceiling.get(key), times)
    return "" if value is None or not math.isfinite(value) else f"<small>ceiling {score(value)}</small>"


def _times(value: float | None, times: float) -> float | None:
    return None if value is None else times * value
