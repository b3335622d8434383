"""The report as one HTML file: no script, no network, pictures inside."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from torch import Tensor

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.visualization import encode_jpeg, hex_color, part_colors, upscale
from partcraft_lit.report.charts import line_chart
from partcraft_lit.report.content import (
    AttentionRow,
    Composition,
    DiscoveredImage,
    Plate,
    Report,
    ScoreRow,
    SourcePart,
    Stage,
)
from partcraft_lit.report.pieces import header, score
from partcraft_lit.report.style import CSS
from partcraft_lit.report.whole_images import whole_pictures

#: Pictures smaller than this are enlarged smoothly before they are embedded: browsers enlarge them badly.
SMALL_SIDE, ENLARGED_SIDE = 200, 256
#: Pictures larger than this are reduced: a report is mailed around.
LARGEST_SIDE = 1800

#: Nothing may be loaded from anywhere, whatever a caption contains.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
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
    """The page."""
    sections = [(anchor, title, body) for anchor, title, body in _sections(report) if body]
    links = "".join(f'<a href="#{anchor}">{escape(title)}</a>' for anchor, title, _ in sections)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.title)}</title><style>{CSS}</style></head>\n<body>\n"
        f"{_masthead(report)}\n<nav><div>{links}</div></nav>\n<main>\n"
        + "\n".join(f'<section id="{anchor}">{body}</section>' for anchor, _, body in sections)
        + f"\n</main>\n{_footer(report)}\n</body></html>\n"
    )


def _sections(report: Report) -> Iterable[tuple[str, str, str]]:
    yield "compositions", "Compositions", _compositions(report)
    yield "parts", "Parts", _parts(report)
    yield "attention", "Attention", _attention(report)
    yield "training", "Training", _training(report)
    yield "scores", "Scores", _scores(report)
    yield "pictures", "Whole pictures", whole_pictures(report.pictures)
    yield "making", "How it was made", _making(report)


def _masthead(report: Report) -> str:
    stats = "".join(
        f'<li><span class="value">{escape(stat.value)}</span><span class="label">{escape(stat.label)}</span>'
        f'<span class="note">{escape(stat.note)}</span></li>'
        for stat in report.stats
    )
    return (
        '<div class="masthead"><p class="eyebrow">partcraft-lit · run report</p>'
        f"<h1>{escape(report.title)}</h1>"
        + (f'<p class="lead">{escape(report.summary)}</p>' if report.summary else "")
        + (f'<ul class="stats">{stats}</ul>' if stats else "")
        + "</div>"
    )


def _footer(report: Report) -> str:
    written = f" · {escape(report.created)}" if report.created else ""
    return f"<footer><p>Written by partcraft-lit{written}. This file is complete: it loads nothing.</p></footer>"


# --- compositions ----------------------------------------------------------------------------------------------------


def _compositions(report: Report) -> str:
    if not report.compositions:
        return ""
    known = any(source.matched is not None for hybrid in report.compositions for source in hybrid.sources)
    explained = "Each object below never existed: it is asked for by tokens of parts taken from the pictures above it."
    if known:
        explained += " ✓ and ✗ say whether the part is read back as the one that was asked for."
    cards = "".join(_composition(hybrid, report.part_names) for hybrid in report.compositions)
    return header("Compositions", explained) + f'<div class="hybrids">{cards}</div>'


def _composition(hybrid: Composition, names: Sequence[str]) -> str:
    sources = "".join(_source(source, names) for source in hybrid.sources)
    truth = ""
    if hybrid.truth is not None:
        truth = f"<figure>{_img(hybrid.truth, 'the true rendering')}<figcaption>True rendering</figcaption></figure>"
    note = f" · {escape(hybrid.note)}" if hybrid.note else ""
    return (
        f'<article class="hybrid"><div class="sources" style="--n:{max(len(hybrid.sources), 1)}">{sources}</div>'
        f"{_join(len(hybrid.sources), narrow=hybrid.truth is None)}"
        f'<div class="results{"" if truth else " single"}"><figure>{_img(hybrid.image, "generated: " + hybrid.prompt)}'
        f"<figcaption><b>Generated</b>{note}</figcaption></figure>{truth}</div>"
        f'<p class="prompt">{_prompt(hybrid.prompt, names)}</p></article>'
    )


def _source(source: SourcePart, names: Sequence[str]) -> str:
    mark = ""
    if source.matched is not None:
        word, sign = ("yes", "✓") if source.matched else ("no", "✗")
        title = "read back as asked" if source.matched else "not read back as asked"
        mark = f'<i class="mark {word}" title="{title}">{sign}</i>'
    name = _name(names, source.part)
    caption = f"<span>{escape(source.caption)}</span>" if source.caption else ""
    return (
        f'<figure style="--c:{_color(source.part)}">{_img(source.image, f"{name} from {source.caption}")}'
        f"<figcaption><b>{escape(name)}{mark}</b>{caption}</figcaption></figure>"
    )


def _join(count: int, narrow: bool) -> str:
    """Lines that lead from the sources to what is generated: the left picture, or the middle one where it is alone."""
    end = 50 if narrow else 25
    lines = []
    for index in range(count):
        x = round(100 * (index + 0.5) / count, 2)
        lines.append(f"M{x} 0C{x} 20 {end} 8 {end} 30")
    return (
        f'<svg class="join" viewBox="0 0 100 30" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{"".join(lines)}"/></svg>'
    )


def _prompt(prompt: str, names: Sequence[str]) -> str:
    """The prompt with its part tokens in their parts' colours."""
    pieces, end = [], 0
    for match in _TOKEN.finditer(prompt):
        pieces.append(escape(prompt[end : match.start()]))
        part = _part_of(match.group(1), names)
        style = "" if part is None else f' style="--c:{_color(part)}"'
        pieces.append(f"<mark{style}>{escape(match.group(0))}</mark>")
        end = match.end()
    return "".join(pieces) + escape(prompt[end:])


def _part_of(name: str, names: Sequence[str]) -> int | None:
    if name in names:
        return list(names).index(name)
    return int(name) if name.isdecimal() and int(name) < len(names) else None


# --- parts -----------------------------------------------------------------------------------------------------------


def _parts(report: Report) -> str:
    body = ""
    if report.discovered:
        pairs = "".join(_pair(picture) for picture in report.discovered)
        body += f'{_chips(report.part_names)}<div class="pairs" style="margin-top:20px">{pairs}</div>'
    if report.parts:
        body += '<h3 class="sub">The dictionary in numbers</h3>' + _part_table(report)
    if report.atlas:
        body += '<h3 class="sub">Atlas</h3>' + _plates(report.atlas, wide=True)
    explained = (
        "Found without a label, by clustering patch features: first the object, then its parts, then their kinds."
    )
    return header("Parts", explained) + body if body else ""


def _pair(picture: DiscoveredImage) -> str:
    images = _img(picture.image, picture.name) + _img(picture.overlay, f"parts of {picture.name}")
    return f'<figure class="pair"><div>{images}</div><figcaption>{escape(picture.name)}</figcaption></figure>'


def _part_table(report: Report) -> str:
    rows = "".join(
        f"<tr><th>{_chip(part.part, report.part_names)}</th>"
        f'<td style="--accent:{_color(part.part)}">{_bar(part.coverage)}</td><td class="num">{part.coverage:.1%}</td>'
        f'<td class="num">{part.images}</td><td class="num">{part.codes}</td></tr>'
        for part in report.parts
    )
    head = (
        '<tr><th>part</th><th>share of places</th><th></th><th class="num">images</th><th class="num">codes</th></tr>'
    )
    return f'<div class="card scores small scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


# --- attention -------------------------------------------------------------------------------------------------------


def _attention(report: Report) -> str:
    if not report.attention:
        return ""
    explained = "Where each part's token looks while its caption is denoised; the percentage lies on the part itself."
    rows = "".join(_attention_row(row, report.part_names) for row in report.attention)
    return header("Attention", explained) + f'<div class="attention">{rows}</div>'


def _attention_row(row: AttentionRow, names: Sequence[str]) -> str:
    first = f"<figure>{_img(row.overlay, 'parts of the image')}<figcaption>parts</figcaption></figure>"
    maps = "".join(
        f'<figure style="--c:{_color(item.part)}">{_img(item.image, "attention of " + _name(names, item.part))}'
        f"<figcaption><i></i>{escape(_name(names, item.part))}"
        f"<span>{'' if item.inside is None else f'{item.inside:.0%}'}</span></figcaption></figure>"
        for item in row.maps
    )
    return (
        f'<figure class="card"><div class="maps" style="--n:{len(row.maps) + 1}">{first}{maps}</div>'
        f'<p class="prompt">{_prompt(row.prompt, names)}</p></figure>'
    )


# --- training --------------------------------------------------------------------------------------------------------


def _training(report: Report) -> str:
    charts = "".join(line_chart(chart) for chart in report.charts)
    columns = 2 if charts.count("<figure") in (2, 4) else 3
    body = f'<div class="charts" style="--cols:{columns}">{charts}</div>' if charts else ""
    if report.samples:
        body += '<h3 class="sub">Samples over time</h3>' + _plates(report.samples, wide=False)
    return (
        header("Training", "Numbers by optimizer step; faint lines are raw, strong ones smoothed.") + body
        if body
        else ""
    )


def _plates(plates: Sequence[Plate], wide: bool) -> str:
    kind = ("wide", "") if wide else ("", "small")
    figures = "".join(
        f'<figure class="card plate {kind[0]}">{_img(plate.image, plate.caption)}'
        f"<figcaption>{escape(plate.caption)}</figcaption></figure>"
        for plate in plates
    )
    return f'<div class="plates {kind[1]}">{figures}</div>'


# --- scores ----------------------------------------------------------------------------------------------------------

_METRICS: tuple[tuple[str, str, Callable[[Any], dict[str, float]]], ...] = (
    (
        "EMR: exact matching rate",
        "Share of parts that are read back from the generated picture with exactly the code that was asked for.",
        lambda scores: scores.emr,
    ),
    (
        "CoSim: cosine similarity",
        "Cosine between the centroids of the code asked for and the code read back. "
        "Kinds of one part resemble each other, so chance lies far above zero.",
        lambda scores: scores.cosim,
    ),
)


def _scores(report: Report) -> str:
    if not report.scores:
        return ""
    key = (
        '<div class="key"><span><u></u>trained</span><span><s></s>ceiling: real pictures read twice</span>'
        '<span><s class="low"></s>untrained model</span></div>'
    )
    tables = "".join(
        f'<h3 class="sub">{title}</h3><p class="quiet">{explained}</p>{_score_table(report, values)}'
        for title, explained, values in _METRICS
    )
    return (
        header("Scores", "What comes back, between what the untrained model gives and the best that can come back.")
        + key
        + tables
    )


def _score_table(report: Report, values: Callable[[Any], dict[str, float]]) -> str:
    head = "".join(
        f'<th class="part" style="--c:{_color(part)}"><i></i>{escape(name)}</th>'
        for part, name in enumerate(report.part_names)
    )
    head = (
        '<tr><th>asked for</th><th>0 to 1</th><th class="num">all parts</th><th class="num">ceiling</th>'
        f'<th class="num">untrained</th><th class="num">foreground</th>{head}</tr>'
    )
    rows = "".join(_score_row(row, report.part_names, values) for row in report.scores)
    return f'<div class="card scores scroll"><table><thead>{head}</thead><tbody>{rows}</tbody></table></div>'


def _score_row(row: ScoreRow, names: Sequence[str], values: Callable[[Any], dict[str, float]]) -> str:
    scores = values(row.scores)
    ceiling = None if row.ceiling is None else values(row.ceiling)["all"]
    untrained = None if row.untrained is None else values(row.untrained)["all"]
    parts = "".join(_heat(scores.get(f"part/{name}")) for name in names)
    return (
        f"<tr><th>{escape(row.protocol)}<small>{row.scores.num_images} pictures</small></th>"
        f"<td>{_bar(scores['all'], ceiling, untrained)}</td>"
        f'<td class="num"><b>{score(scores["all"])}</b></td><td class="num">{score(ceiling)}</td>'
        f'<td class="num">{score(untrained)}</td>'
        f'<td class="num">{score(scores["without_background"])}</td>{parts}</tr>'
    )


def _heat(value: float | None) -> str:
    if value is None or not math.isfinite(value):
        return '<td class="num">–</td>'
    return f'<td class="heat" style="--v:{_share(value):.3f}">{value:.2f}</td>'


def _bar(value: float, ceiling: float | None = None, untrained: float | None = None) -> str:
    marks = "" if ceiling is None else f'<s style="left:{_percent(ceiling)}" title="ceiling {ceiling:.3f}"></s>'
    if untrained is not None:
        marks += f'<s class="low" style="left:{_percent(untrained)}" title="untrained {untrained:.3f}"></s>'
    return f'<div class="bar"><u style="width:{_percent(value)}"></u>{marks}</div>'


def _percent(value: float) -> str:
    return f"{100 * _share(value):.1f}%"


def _share(value: float) -> float:
    """Cut to 0...1; what is not finite has no length."""
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


# --- how it was made -------------------------------------------------------------------------------------------------


def _making(report: Report) -> str:
    body = ""
    if report.notes:
        body += f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in report.notes)}</ul>'
    if report.stages:
        body += _stages(report.stages)
    if report.command:
        body += f'<h3 class="sub">Command</h3><pre>{escape(report.command)}</pre>'
    for title, values in (("Settings", report.settings), ("Environment", report.environment)):
        if values:
            body += _tree(title, values)
    return header("How it was made", "") + body if body else ""


def _stages(stages: Sequence[Stage]) -> str:
    total = sum(stage.seconds for stage in stages) or 1.0
    rows = "".join(
        f"<tr><th>{escape(stage.name)}<small>{escape(stage.note)}</small></th>"
        f'<td>{_bar(stage.seconds / total)}</td><td class="num">{duration(stage.seconds)}</td></tr>'
        for stage in stages
    )
    rows += f'<tr><th>Together</th><td></td><td class="num"><b>{duration(total)}</b></td></tr>'
    return f'<div class="card stages scroll"><table><tbody>{rows}</tbody></table></div>'


def _tree(title: str, values: Mapping[str, Any]) -> str:
    flat = list(_flatten(values))
    rows = "".join(f"<tr><th>{escape(key)}</th><td>{escape(value)}</td></tr>" for key, value in flat)
    return (
        f'<details class="card"><summary>{title} <span>· {len(flat)} entries</span></summary>'
        f'<div class="scroll"><table class="tree"><tbody>{rows}</tbody></table></div></details>'
    )


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            yield f"{prefix}{key}", shown


def duration(seconds: float) -> str:
    """ "0.4 s", "12 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


# --- pieces ----------------------------------------------------------------------------------------------------------


def _chips(names: Sequence[str]) -> str:
    return f'<ul class="chips">{"".join(f"<li>{_chip(part, names)}</li>" for part in range(len(names)))}</ul>'


def _chip(part: int, names: Sequence[str]) -> str:
    return f'<span class="chip" style="--c:{_color(part)}"><i></i>{escape(_name(names, part))}</span>'


def _name(names: Sequence[str], part: int) -> str:
    return names[part] if part < len(names) else f"part {part}"


def _color(part: int) -> str:
    return hex_color(part_colors(part + 1)[part])


def _img(image: Tensor, alt: str) -> str:
    longer = max(image.shape[1:])
    if longer < SMALL_SIDE:
        image = upscale(image, ENLARGED_SIDE)
    elif longer > LARGEST_SIDE:
        image = upscale(image, LARGEST_SIDE)
    height, width = image.shape[1:]
    return (
        f'<img src="{_data_uri(image)}" width="{width}" height="{height}" alt="{escape(alt.strip())}" decoding="async">'
    )


def _data_uri(image: Tensor) -> str:
    """JPEG without colour subsampling: a tenth of a PNG's size, and outlines keep their colours."""
    return f"data:image/jpeg;base64,{base64.b64encode(encode_jpeg(image, quality=90)).decode()}"
