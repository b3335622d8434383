"""Tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        mean, low, high: a value with its interval; NaN where there is none.
        best: whether it is printed as the best of its column.
        ties: whether it may be the best or as good as the best.
        reported: the paper's value.
    """

    mean: float
    low: float
    high: float
    best: bool = False
    ties: bool = False
    reported: float | None = None


@dataclass(frozen=True)
class Column:
    """Head of a column.

    Attributes:
        name: what is measured.
        higher: whether more is better.
        key: by what exactly, behind the name; "" for nothing.
        block: the columns of one block stand together under this heading.
    """

    name: str
    higher: bool = True
    key: str = ""
    block: str = ""


@dataclass(frozen=True)
class Table:
    """Rows by columns.

    Attributes:
        title: heading.
        question: that it answers.
        columns: their heads.
        rows: name -> one entry per column.
        extra: name of a further column, in the last block -> one text per row, as the costs of a row.
        notes: sentences below it.
    """

    title: str
    question: str
    columns: Sequence[Column]
    rows: Mapping[str, Sequence[Entry]]
    extra: Mapping[str, Sequence[str]]
    notes: Sequence[str]

    def blocks(self) -> dict[str, list[int]]:
        """Heading -> its columns, in their order."""
        found: dict[str, list[int]] = {}
        for index, column in enumerate(self.columns):
            found.setdefault(column.block, []).append(index)
        return found

    def reported_columns(self) -> list[int]:
        """Columns for which the paper gives a value of some row; of several with one name, the first."""
        entries = list(self.rows.values())
        first = {column.name: index for index, column in reversed(list(enumerate(self.columns)))}
        return [i for i in sorted(first.values()) if any(row[i].reported is not None for row in entries)]


def markdown(table: Table) -> str:
    """GitHub's Markdown: best values bold, ties marked, a table for each block."""
    lines = [f"# {table.title}", "", table.question, ""]
    for block, head, body in _blocks(table, _markdown_entry):
        lines += [f"## {block}", ""] if block else []
        lines += ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
        lines += ["| " + " | ".join(text.replace("|", r"\|") for text in row) + " |" for row in body]
        lines.append("")
    return "\n".join([*lines, *(f"- {note}" for note in table.notes), ""])


def latex(table: Table) -> str:
    """A ``tabular`` for booktabs, one for each block; headings of blocks and notes are comments."""
    lines = [f"% {note}" for note in (table.title, *table.notes)]
    for block, head, body in _blocks(table, _latex_entry):
        lines += [f"% {block}"] if block else []
        lines += _tabular(head, body)
    return "\n".join([*lines, ""])


def _tabular(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    marks = {"↑": r"$\uparrow$", "↓": r"$\downarrow$", "×": r"$\times$"}
    lines = [rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule"]
    for index, row in enumerate([head, *body]):
        texts = [_escaped(text) if index == 0 or not place else text for place, text in enumerate(row)]
        line = " & ".join(texts) + r" \\"
        for mark, command in marks.items():
            line = line.replace(mark, command)
        lines += [line, r"\midrule"] if index == 0 else [line]
    return [*lines, r"\bottomrule", r"\end{tabular}"]


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


def _blocks(table: Table, show: Callable[[Entry], str]) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """Heading, head and lines of each block, as text."""
    blocks = table.blocks()
    for place, (block, indices) in enumerate(blocks.items()):
        extra = table.extra if place == len(blocks) - 1 else {}
        head, body = _cells(table, indices, show)
        costs = [[texts[row] for texts in extra.values()] for row in range(len(body))]
        yield block, [*head, *extra], [[*line, *of_row] for line, of_row in zip(body, costs, strict=True)]


def _cells(table: Table, indices: Sequence[int], show: Callable[[Entry], str]) -> tuple[list[str], list[list[str]]]:
    """The heading and the lines of some columns."""
    with_reported = table.reported_columns()
    head = [""]
    for index in indices:
        column = table.columns[index]
        head.append(f"{column.name} {'↑' if column.higher else '↓'}" + (f" {column.key}" if column.key else ""))
        if index in with_reported:
            head.append(f"{column.name}, paper")
    body = []
    for name, entries in table.rows.items():
        line = [name]
        for index in indices:
            line.append(show(entries[index]))
            if index in with_reported:
                reported = entries[index].reported
                line.append("–" if reported is None else short(reported))
        body.append(line)
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
