"""Sizes of the source as plain tables: ``python tools/stats.py [FOLDER]``, the package unless a folder is given.

Lines count as written, with comments, docstrings and blanks. A function extends from its first decorator to its last
line, nested functions included.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 10


@dataclass(frozen=True)
class Size:
    """A file or function and its number of lines."""

    name: str
    lines: int


def functions(path: Path, name: str) -> Iterable[Size]:
    """Every function and method of a file, named ``file:line qualified_name``."""

    def walk(node: ast.AST, scope: str) -> Iterable[Size]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                qualified = f"{scope}{child.name}"
                if not isinstance(child, ast.ClassDef):
                    first = min([child.lineno, *(decorator.lineno for decorator in child.decorator_list)])
                    yield Size(f"{name}:{first} {qualified}", (child.end_lineno or first) - first + 1)
                yield from walk(child, f"{qualified}.")
            else:
                yield from walk(child, scope)

    return walk(ast.parse(path.read_text(encoding="utf-8")), "")


def table(title: str, rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    text = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in text) for column in range(len(text[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in text
    ]
    return "\n".join([title, *(f"  {line.rstrip()}" for line in lines)])


def summary(sizes: Sequence[Size]) -> list[object]:
    counts = [size.lines for size in sizes]
    return [len(counts), f"{median(counts):.0f}", max(counts)]


def room(path: Path, source: Path) -> str:
    """The folder directly below ``source`` that holds a file, or the file itself if none does."""
    return path.relative_to(source).parts[0]


def report(source: Path) -> str:
    """Raises ValueError if there is no Python file below ``source``."""
    paths = sorted(source.rglob("*.py"))
    if not paths:
        raise ValueError(f"No Python files below {source}.")
    files, every, rooms = [], [], dict[str, list[int]]()
    for path in paths:
        name = path.relative_to(source).as_posix()
        size = Size(name, len(path.read_text(encoding="utf-8").splitlines()))
        files.append(size)
        every += functions(path, name)
        rooms.setdefault(room(path, source), []).append(size.lines)

    def longest(sizes: Sequence[Size]) -> list[list[object]]:
        return [[size.name, size.lines] for size in sorted(sizes, key=lambda size: -size.lines)[:LONGEST]]

    blocks = [
        f"{sum(size.lines for size in files):,} lines in {source.name}",
        table("", [["", "count", "median", "longest"], ["files", *summary(files)], ["functions", *summary(every)]]),
        table("Longest files", longest(files)),
        table("Longest functions", longest(every)),
        table(
            "Rooms",
            [["", "files", "lines"], *([name, len(sizes), sum(sizes)] for name, sizes in sorted(rooms.items()))],
        ),
    ]
    return "\n\n".join(block.strip("\n") for block in blocks)


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "src" / "partcraft_lit"))
