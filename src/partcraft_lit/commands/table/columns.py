"""Columns of a table as they are shown: a protocol's column that stands for several networks becomes one for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from partcraft_lit.commands.table.comparison import RunScores
from partcraft_lit.commands.table.settings import ColumnSettings
from partcraft_lit.evaluation.judging import PREFIX
from partcraft_lit.metrics.fid import KID_BELOW

Runs = Iterable[Sequence[RunScores]]


@dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
        name: in the protocol.
        key: the metric with its network, as ``fid@tf-299``, where the protocol leaves the network open; else "".
        chosen: what is compared; its metric names one network.
    """

    name: str
    key: str
    chosen: ColumnSettings

    @property
    def title(self) -> str:
        """Unlike that of every other column."""
        return f"{self.name} ({self.key})" if self.key else self.name


def columns_of(columns: Mapping[str, ColumnSettings], rows: Runs) -> list[Column]:
    """What the table has to show: a metric with a * is every such metric that some run has and no earlier column shows.

    A column that would be empty because no run was scored by such a network is left out.
    """
    runs = [run for of_row in rows for run in of_row]
    found: list[Column] = []
    for name, chosen in columns.items():
        if "*" not in chosen.metric:
            found.append(Column(name, "", chosen))
            continue
        taken = {column.key for column in found if column.chosen.protocols == chosen.protocols}
        known = {key for run in runs for key in _metrics(run, chosen) if fnmatchcase(key, chosen.metric)}
        metrics = sorted(key for key in known if key.removeprefix("pictures/") not in taken)
        found += [Column(name, m.removeprefix("pictures/"), replace(chosen, metric=m)) for m in metrics]
    return found


def notes_on(columns: Sequence[Column], rows: Runs) -> list[str]:
    """How far numbers of whole sets of images can be trusted; nothing where there are none."""
    runs = [list(of_row) for of_row in rows if of_row]
    judged = _unreadable_notes(columns, runs)
    of_runs = [column for column in columns if column.chosen.per == "run"]
    if not (of_runs and runs):
        return judged
    names = ", ".join(dict.fromkeys(column.name for column in of_runs))
    seeds = max(len(of_row) for of_row in runs)
    notes = [f"{names}: one value for each seed, so the interval is over {seeds} seeds alone{_coverage(seeds)}."]
    distances = [column for column in of_runs if column.key.startswith(("fid@", "kid@"))]
    counts = sorted({count for column in distances for count in _image_counts(column, runs)})
    if not counts:
        return notes + judged
    notes[0] = notes[0].removesuffix(".") + f"; FID and KID are of {_listed(counts)} images."
    if counts[0] < KID_BELOW:
        notes.append(
            f"Below {KID_BELOW:,} images FID is too high by an amount that differs between models; KID has no such "
            "bias, so KID is what to read."
        )
    return notes + judged


def _unreadable_notes(columns: Sequence[Column], runs: Sequence[Sequence[RunScores]]) -> list[str]:
    """Which parts the judges of the columns could not read, in some run at least."""
    notes = []
    for name in dict.fromkeys(c.chosen.metric.split("/")[1] for c in columns if c.chosen.metric.startswith(PREFIX)):
        beginning = f"{PREFIX}{name}/readable/"
        numbers = [run.numbers for of_row in runs for run in of_row]
        keys = dict.fromkeys(key for of_run in numbers for key in of_run if key.startswith(beginning))
        parts = [
            f"{key.removeprefix(beginning).partition('@')[0]} ({_share(len(bad), len(numbers))})"
            for key in keys
            if (bad := [of_run for of_run in numbers if of_run.get(key) == 0])
        ]
        if parts:
            notes.append(
                f"{name}: this judge cannot tell codes of {', '.join(parts)} apart on real images, and its means leave "
                "them out."
            )
    return notes


def _share(some: int, of: int) -> str:
    return "all runs" if some == of else f"{some} of {of} runs"


def _coverage(seeds: int) -> str:
    """The range of n values holds the median of their source with probability 1 - 2^(1 - n)."""
    if seeds < 2:
        return " (none for a single one)"
    if seeds > 5:
        return ""
    share = 1 - 2.0 ** (1 - seeds)
    return f": with so few it is about their range, which holds the median of all seeds in {share:.0%} of cases"


def _metrics(run: RunScores, chosen: ColumnSettings) -> Iterable[str]:
    """What a run has of the column's protocols; ``pictures/fid@tf-299@reconstruction`` is ``pictures/fid@tf-299``."""
    if chosen.per == "image":
        return {key for row in run.rows if row["protocol"] in chosen.protocols for key in row}
    if not chosen.protocols:
        return run.numbers
    protocols = {protocol.replace(" ", "_") for protocol in chosen.protocols}
    return {metric for metric, _, of in (key.rpartition("@") for key in run.numbers) if of in protocols}


def _image_counts(column: Column, runs: Sequence[Sequence[RunScores]]) -> set[int]:
    """How many images the runs have of each of its protocols."""
    counts = Counter((id(run), row["protocol"]) for of_row in runs for run in of_row for row in run.rows)
    return {count for (_, protocol), count in counts.items() if protocol in column.chosen.protocols}


def _listed(counts: Sequence[int]) -> str:
    return " or ".join(f"{count:,}" for count in counts)
