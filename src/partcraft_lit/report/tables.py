"""A table for people and papers: Markdown, LaTeX, CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What one place of a table shows.

    Attributes:
        mean, low, high: a value with its interval; NaN where there is none.
        best: whether it is printed as the best of its column.
        ties: whether its difference to the best may be chance.
        reported: value of the paper.
    """

    mean: float
    low: float
    high: float
    best: bool = False
    ties: bool = False
    reported: float | None = None


@dataclass(frozen=True)
class Table:
    """Rows by columns.

    Attributes:
        title: heading.
        question: that it answers.
        columns: name -> whether more is better.
        rows: name -> one entry per column.
        extra: name of a further column -> one text per row, as the costs of a row.
        notes: sentences below it.
    """

    title: str
    question: str
    columns: Mapping[str, bool]
    rows: Mapping[str, Sequence[Entry]]
    extra: Mapping[str, Sequence[str]]
    notes: Sequence[str]

    def reported_columns(self) -> list[int]:
        """Columns for which the paper gives a value of some row."""
        entries = list(self.rows.values())
        return [i for i in range(len(self.columns)) if any(row[i].reported is not None for row in entries)]


def markdown(table: Table) -> str:
    """GitHub's Markdown: best values bold, ties marked."""
    head, body = _cells(table, _markdown_entry)
    lines = [f"# {table.title}", "", table.question, ""]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    lines += ["| " + " | ".join(text.replace("|", r"\|") for text in row) + " |" for row in body]
    return "\n".join([*lines, "", *(f"- {note}" for note in table.notes), ""])


def latex(table: Table) -> str:
    """A ``tabular`` for booktabs; the notes are comments."""
    head, body = _cells(table, _latex_entry)
    marks = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    lines = [f"% {note}" for note in (table.title, *table.notes)]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    for index, row in enumerate([head, *body]):
        texts = [_escaped(text) if index == 0 or not place else text for place, text in enumerate(row)]
        line = " & ".join(texts) + r" \\"
        for mark, command in marks.items():
            line = line.replace(mark, command)
        lines += [line, r"\midrule"] if index == 0 else [line]
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Comma-separated; NaN and None are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_plain(value) for value in row] for row in rows])
    return text.getvalue()


def short(value: float, digits: int = 3) -> str:
    """Three decimals below ten, fewer above; a dash for nothing."""
    if not math.isfinite(value):
        return "–"
    size = abs(value)
    return f"{value:.{digits}f}" if size < 10 else f"{value:.1f}" if size < 1000 else f"{value:,.0f}"


def _cells(table: Table, show: Callable[[Entry], str]) -> tuple[list[str], list[list[str]]]:
    """The heading and the lines, as text."""
    reported = table.reported_columns()
    head = [""]
    for index, (name, higher) in enumerate(table.columns.items()):
        head.append(f"{name} {'↑' if higher else '↓'}")
        if index in reported:
            head.append(f"{name}, paper")
    head += list(table.extra)
    body = []
    for place, (name, entries) in enumerate(table.rows.items()):
        line = [name]
        for index, entry in enumerate(entries):
            line.append(show(entry))
            if index in reported:
                line.append("–" if entry.reported is None else short(entry.reported))
        body.append(line + [texts[place] for texts in table.extra.values()])
    return head, body


def _markdown_entry(entry: Entry) -> str:
    if not math.isfinite(entry.mean):
        return "–"
    mean = f"**{short(entry.mean)}**" if entry.best else short(entry.mean)
    bounds = f" [{short(entry.low)}, {short(entry.high)}]" if math.isfinite(entry.low) else ""
    return f"{mean}{' ≈' if entry.ties else ''}{bounds}"


def _latex_entry(entry: Entry) -> str:
    if not math.isfinite(entry.mean):
        return "--"
    mean = rf"\textbf{{{short(entry.mean)}}}" if entry.best else short(entry.mean)
    tie = r"$^{\approx}$" if entry.ties else ""
    half = (entry.high - entry.low) / 2
    spread = rf" {{\scriptsize$\pm${short(half)}}}" if math.isfinite(half) else ""
    return f"{mean}{tie}{spread}"


def _escaped(text: str) -> str:
    for sign in "&%$#_{}":
        text = text.replace(sign, "\\" + sign)
    return text.replace("λ", r"$\lambda$")


def _plain(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value
