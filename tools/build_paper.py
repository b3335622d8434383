"""Fills docs/paper.md with the numbers of experiments/: python tools/build_paper.py [--check]

The text is experiments/paper.md.jinja; every number, table and figure in it comes from the files that ``partcraft
table`` wrote. --check writes nothing and ends with exit code 1 if the page is not what they give.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
from functools import cache
from pathlib import Path
from statistics import fmean, median
from typing import Any

import yaml
from jinja2 import Environment, StrictUndefined
from scipy.stats import binomtest, spearmanr

from partcraft_lit.metrics.paired import paired_difference
from partcraft_lit.report.tables import short

#: Keys and values of a trial, as its search wrote them.
Settings = tuple[tuple[str, str], ...]

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "experiments"
TEMPLATE, PAGE = EXPERIMENTS / "paper.md.jinja", ROOT / "docs" / "paper.md"


def has(table: str) -> bool:
    """Whether a table has been made."""
    return (EXPERIMENTS / table / "summary.csv").is_file()


@cache
def summary(table: str) -> dict[tuple[str, str], dict[str, str]]:
    """Row and column -> the cell's line of ``summary.csv``."""
    with (EXPERIMENTS / table / "summary.csv").open(encoding="utf-8", newline="") as lines:
        return {(line["row"], line["column"]): line for line in csv.DictReader(lines)}


@cache
def protocol(table: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((EXPERIMENTS / table / "protocol.json").read_text(encoding="utf-8"))
    return found


def cell(table: str, row: str, column: str, percent: bool = False) -> str:
    """The mean with its interval."""
    line = _line(table, row, column)
    if not line["mean"]:
        return "–"
    mean, low, high = (float(line[key] or math.nan) for key in ("mean", "low", "high"))
    written = (lambda number: f"{100 * number:.0f}") if percent else short
    bounds = f" [{written(low)}, {written(high)}]" if math.isfinite(low) else ""
    return f"{written(mean)}{' %' if percent else ''}{bounds}"


def value(table: str, row: str, column: str, percent: bool = False) -> str:
    """The mean alone."""
    return cell(table, row, column, percent).partition(" [")[0]


def reported(table: str, row: str, column: str) -> str:
    """What the paper gives."""
    given = _line(table, row, column)["reported"]
    return short(float(given)) if given else "–"


def grid(table: str, columns: dict[str, str], chosen: list[str] | None = None, percent: bool = False) -> str:
    """A Markdown table: head -> column of the table; bold where its corrected test tells the best from all others."""
    lines = [["", *columns], ["---"] + ["---:"] * len(columns)]
    for row in rows(table) if chosen is None else chosen:
        texts = [cell(table, row, column, percent) for column in columns.values()]
        marks = [_is_bold(_line(table, row, column)) for column in columns.values()]
        lines.append([row, *(f"**{text}**" if bold else text for text, bold in zip(texts, marks, strict=True))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def difference(table: str, row: str, other: str, metric: str, protocols: list[str]) -> str:
    """Row less other, with its interval and uncorrected p-value: a paired t-test over seeds."""
    ours, theirs = (_seeds(table, name, metric, tuple(protocols)) for name in (row, other))
    common = sorted(ours.keys() & theirs.keys())
    found = paired_difference([[ours[seed]] for seed in common], [[theirs[seed]] for seed in common])
    bounds = f" [{found.low:+.3f}, {found.high:+.3f}]" if math.isfinite(found.low) else ""
    return f"{found.mean:+.3f}{bounds}, p = {found.p_value:.2g}, {found.seeds} seeds"


def corrected(table: str, row: str, column: str) -> str:
    """p-value of a row's difference to the best of a column, corrected over the table."""
    return f"{float(_line(table, row, column)['p_corrected']):.2g}"


def effect(table: str, row: str, column: str) -> str:
    """Effect size of a row's difference to the best of a column."""
    return f"{float(_line(table, row, column)['effect']):.2f}"


def rank_correlation(table: str, first: str, second: str, protocols: list[str]) -> str:
    """Spearman's over the means of the rows."""
    means = [
        [fmean(_seeds(table, row, metric, tuple(protocols)).values()) for row in rows(table)]
        for metric in (first, second)
    ]
    return f"{float(spearmanr(*means).statistic):.2f}"


def wins(table: str, row: str, other: str) -> str:
    """In how many of the settings that two searches have in common a row has the smaller objective; a sign test."""
    pairs = _common_trials(table, row, other)
    won = sum(ours < theirs for ours, theirs in pairs.values())
    return f"{won} of {len(pairs)} (sign test, p = {binomtest(won, len(pairs)).pvalue:.1g})"


def medians(table: str, row: str, other: str) -> str:
    """Medians over the same settings, of the other row and of this."""
    ours, theirs = zip(*_common_trials(table, row, other).values(), strict=True)
    return f"{100 * median(theirs):.1f} % → {100 * median(ours):.1f} %"


def with_smallest(table: str, row: str, other: str, key: str) -> dict[str, str]:
    """The smallest value of a key that both searches tried, and what the two rows had with it."""
    pairs = _common_trials(table, row, other)
    chosen = min(pairs, key=lambda settings: float(dict(settings)[key]))
    ours, theirs = pairs[chosen]
    value = f"{float(dict(chosen)[key]):.2g}"
    return {"value": value, row: f"{100 * ours:.0f} %", other: f"{100 * theirs:.0f} %"}


def _common_trials(table: str, row: str, other: str) -> dict[Settings, tuple[float, float]]:
    ours, theirs = _trials(table, row), _trials(table, other)
    return {settings: (ours[settings], theirs[settings]) for settings in ours if settings in theirs}


def _trials(table: str, row: str) -> dict[Settings, float]:
    """Settings of a row's search -> objective."""
    path = EXPERIMENTS / table / "studies" / row
    chosen = yaml.safe_load((path / "chosen.yaml").read_text(encoding="utf-8"))
    keys, objective = sorted(chosen["overrides"]), chosen["objective"]
    with (path / "search.csv").open(encoding="utf-8", newline="") as lines:
        return {
            tuple((key, line[key]) for key in keys): float(line[objective])
            for line in csv.DictReader(lines)
            if line[objective]
        }


def agreement(file: str, score: str, measure: str = "auroc", part: str = "all", percent: bool = False) -> str:
    """A mean over runs with its interval, from what ``benchmarks/agreement.py`` wrote."""
    line = _agreement_line(file, score, part, measure)
    mean, low, high = (float(line[key]) for key in ("mean", "low", "high"))
    write = (lambda number: f"{100 * number:.0f}") if percent else (lambda number: f"{number:.2f}")
    bounds = f" [{write(low)}, {write(high)}]" if math.isfinite(low) else ""
    return f"{write(mean)}{' %' if percent else ''}{bounds}"


def _agreement_line(file: str, score: str, part: str, measure: str) -> dict[str, str]:
    with (EXPERIMENTS / "agreement" / f"{file}.csv").open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            if (line["score"], line["part"], line["measure"]) == (score, part, measure):
                return line
    raise SystemExit(f"{TEMPLATE.name}: experiments/agreement/{file}.csv has no line ({score}, {part}, {measure}).")


def rows(table: str) -> list[str]:
    return list(dict.fromkeys(row for row, _ in summary(table)))


def trials(table: str) -> int:
    """Of each of its searches."""
    found: int = protocol(table)["tuning"]["trials"]
    return found


def seeds(table: str) -> int:
    return len(protocol(table)["seeds"])


def commit(table: str) -> str:
    """Of the code that wrote a table, and whether it had changes."""
    git = protocol(table)["environment"].get("git")
    return "an installed package" if not git else f"`{git['commit'][:10]}`" + (", with changes" if git["dirty"] else "")


def figure(table: str) -> str:
    return f"![{protocol(table)['question']}](../experiments/{table}/figure.png)"


def _line(table: str, row: str, column: str) -> dict[str, str]:
    """The cell of a column, whose title may name a network behind it."""
    for (name, title), line in summary(table).items():
        if name == row and (title == column or title.startswith(f"{column} (")):
            return line
    raise SystemExit(f"{TEMPLATE.name}: the table {table} has no cell ({row}, {column}).")


def _is_bold(line: dict[str, str]) -> bool:
    return line["best"] == "True" and line.get("distinct") == "True"


@cache
def _seeds(table: str, row: str, metric: str, protocols: tuple[str, ...]) -> dict[str, float]:
    """Seed -> mean over its images."""
    found: dict[str, list[float]] = {}
    with (EXPERIMENTS / table / "results.csv").open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            if line["row"] == row and line["protocol"] in protocols and line[metric]:
                found.setdefault(line["seed"], []).append(float(line[metric]))
    return {seed: sum(values) / len(values) for seed, values in found.items()}


def render() -> str:
    environment = Environment(
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    functions = (
        has,
        cell,
        value,
        reported,
        grid,
        difference,
        rows,
        seeds,
        trials,
        commit,
        figure,
        protocol,
        corrected,
        effect,
        rank_correlation,
        wins,
        medians,
        with_smallest,
        agreement,
    )
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    return template.render({function.__name__: function for function in functions})


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args(arguments)
    text = render()
    if not given.check:
        PAGE.write_text(text, encoding="utf-8")
        print(PAGE.relative_to(ROOT))
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        return 0
    print(f"{PAGE.relative_to(ROOT)} is not what experiments/ gives: run python tools/build_paper.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
