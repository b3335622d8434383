"""The report as one HTML file, from the templates beside this module: no script, no network, images inside."""

from __future__ import annotations

import base64
import functools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.visualization import encode_jpeg, hex_color, part_colors, upscale
from partcraft_lit.report.charts import line_chart
from partcraft_lit.report.sections import Report, WholeImageRow

#: Images smaller than this are enlarged smoothly before they are embedded: browsers enlarge them badly.
SMALL_SIDE, ENLARGED_SIDE = 200, 256
#: Images larger than this are reduced: a report is mailed around.
LARGEST_SIDE = 1800

_TOKEN = re.compile(r"<\s*([^<>:]+?)\s*:\s*(\d+)\s*>")


def write_report(path: Path | str, report: Report) -> Path:
    """Writes the report atomically; returns the path.

    Raises:
        UserError: if the disk is full or the folder cannot be written to.
    """
    path = Path(path)
    atomic_write(path, render(report))
    return path


def render(report: Report) -> str:
    """The page; sections without content are left out."""
    charts = [image for image in map(line_chart, report.charts) if image is not None]
    sections = {
        "compositions": ("Compositions", report.compositions),
        "parts": ("Parts", [*report.discovered, *report.parts, *report.atlas]),
        "attention": ("Attention", report.attention),
        "training": ("Training", [*charts, *report.samples]),
        "scores": ("Scores", report.scores),
        "judges": ("Judges", report.judges),
        "images": ("Whole images", report.whole_images),
        "making": (
            "How it was made",
            [*report.notes, *report.stages, report.command, report.settings, report.environment],
        ),
    }
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            sections={anchor: title for anchor, (title, content) in sections.items() if any(map(_is_given, content))},
            charts=charts,
            metrics=_METRICS,
            image_tables=_image_tables(report.whole_images),
        )
    )


def _is_given(content: object) -> bool:
    return bool(content) if isinstance(content, str | Mapping) else True


@functools.cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("partcraft_lit.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "color": part_color,
        "duration": duration,
        "flatten": lambda values: list(flatten(values)),
        "jpeg": embedded,
        "part_name": part_name,
        "percent": lambda value: f"{100 * share(value):.1f}%",
        "score": score,
        "share": share,
        "svg": lambda data: f"data:image/svg+xml;base64,{base64.b64encode(data).decode()}",
        "tokens": lambda prompt, names: list(tokens(prompt, names)),
    }
    return environment


@dataclass(frozen=True)
class Embedded:
    """An image as a data URI."""

    uri: str
    width: int
    height: int


def embedded(image: Tensor) -> Embedded:
    """JPEG without colour subsampling: a tenth of a PNG's size, and outlines keep their colours."""
    longer = max(image.shape[1:])
    if longer < SMALL_SIDE:
        image = upscale(image, ENLARGED_SIDE)
    elif longer > LARGEST_SIDE:
        image = upscale(image, LARGEST_SIDE)
    height, width = image.shape[1:]
    data = base64.b64encode(encode_jpeg(image, quality=90)).decode()
    return Embedded(f"data:image/jpeg;base64,{data}", width, height)


@dataclass(frozen=True)
class PromptPiece:
    """Plain text, or a part token; ``part`` is None for a token of no known part."""

    text: str
    is_token: bool = False
    part: int | None = None


def tokens(prompt: str, names: Sequence[str]) -> Iterator[PromptPiece]:
    """Cuts a prompt at its part tokens, ``<head:3>`` or by number ``<1:3>``."""
    end = 0
    for match in _TOKEN.finditer(prompt):
        yield PromptPiece(prompt[end : match.start()])
        yield PromptPiece(match.group(0), is_token=True, part=_part_of(match.group(1), names))
        end = match.end()
    yield PromptPiece(prompt[end:])


def _part_of(name: str, names: Sequence[str]) -> int | None:
    if name in names:
        return list(names).index(name)
    return int(name) if name.isdecimal() and int(name) < len(names) else None


def part_name(names: Sequence[str], part: int) -> str:
    return names[part] if part < len(names) else f"part {part}"


def part_color(part: int) -> str:
    return hex_color(part_colors(part + 1)[part])


def score(value: float | None) -> str:
    """Three decimals; a dash for nothing."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def share(value: float) -> float:
    """Cut to 0...1; what is not finite has no length."""
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as dotted keys and text."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def duration(seconds: float) -> str:
    """ "0.4 s", "12 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


@dataclass(frozen=True)
class _PartMetric:
    """A table of part scores; ``field`` is the attribute of ``PartScores``."""

    title: str
    explained: str
    field: str


_METRICS = (
    _PartMetric(
        "EMR: exact matching rate",
        "Share of parts that are read back from the generated image with exactly the code that was asked for.",
        "emr",
    ),
    _PartMetric(
        "CoSim: cosine similarity",
        "Cosine between the centroids of the code asked for and the code read back. "
        "Codes of one part resemble each other, so chance lies far above zero.",
        "cosim",
    ),
)


@dataclass(frozen=True)
class _ImageMetric:
    """Head of a column, the mark of its good end, and what its values are multiplied by."""

    title: str
    good: str = "↑"
    times: float = 1.0


#: In the order of the columns; others follow under their own names.
_IMAGE_METRICS = {
    "fid": _ImageMetric("FID", "↓"),
    "kid": _ImageMetric("KID × 1000", "↓", 1000),
    "likeness": _ImageMetric("likeness"),
    "image": _ImageMetric("likeness to the concept"),
    "text": _ImageMetric("text, CLIPScore"),
    "clip-t": _ImageMetric("CLIP-T"),
    "clip-score": _ImageMetric("CLIPScore"),
    "copied": _ImageMetric("copied", "↓"),
    "nearest": _ImageMetric("nearest", ""),
}
#: Metric -> the one that is its standard error.
_ERRORS = {"kid": "kid_error"}


@dataclass(frozen=True)
class _Cell:
    value: float | None
    error: float | None
    ceiling: float | None


@dataclass(frozen=True)
class _ImageTable:
    heads: list[str]
    rows: list[tuple[str, list[_Cell]]]


def _image_tables(rows: Sequence[WholeImageRow]) -> dict[str, _ImageTable]:
    """Network -> its table."""
    networks = list(dict.fromkeys(row.network for row in rows))
    return {name: _image_table([row for row in rows if row.network == name]) for name in networks}


def _image_table(rows: Sequence[WholeImageRow]) -> _ImageTable:
    given = dict.fromkeys(key for row in rows for key in row.metrics if key not in _ERRORS.values())
    keys = [*(key for key in _IMAGE_METRICS if key in given), *(key for key in given if key not in _IMAGE_METRICS)]
    known = {key: _IMAGE_METRICS.get(key, _ImageMetric(key, "")) for key in keys}
    return _ImageTable(
        heads=[f"{metric.title} {metric.good}".rstrip() for metric in known.values()],
        rows=[(row.protocol, [_cell(key, row, metric.times) for key, metric in known.items()]) for row in rows],
    )


def _cell(key: str, row: WholeImageRow, times: float) -> _Cell:
    values = row.metrics.get(key), row.metrics.get(_ERRORS.get(key, "")), row.ceiling.get(key)
    return _Cell(*(None if value is None else times * value for value in values))
