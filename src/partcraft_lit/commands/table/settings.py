"""Settings of ``partcraft table``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from partcraft_lit.core.settings import Count, PathSettings, Positive, UserPath
from partcraft_lit.scheduling.settings import PoolSettings, SlurmSettings


@dataclass(frozen=True)
class ColumnSettings:
    """One column of a table.

    Attributes:
        metric: a column of ``scores.csv`` with ``per="image"``, else a key of the run's ``scores.json`` or, at its last
            step, of ``metrics.jsonl``, without the protocol. A * stands for anything: one column for each metric that
            the runs have, none if they have none.
        protocols: the sets of images it is taken over; empty for numbers that are not of images.
        higher: whether more is better.
        per: what it has one value for: each "image", or each "run".
        panel: panel of the figure to which it gives a point, where columns are points.
        x: place of that point.
        times: what the values are multiplied by for the table.
        block: heading of the part of the table that it stands in; None for the panel's.
        primary: whether it is what the table was made to decide; at most one column, all others are secondary then.
    """

    metric: str
    protocols: tuple[str, ...] = ()
    higher: bool = True
    per: Literal["image", "run"] = "image"
    panel: str | None = None
    x: float | None = None
    times: float = 1.0
    block: str | None = None
    primary: bool = False


@dataclass(frozen=True)
class RowSettings:
    """One row of a table: a method or a setting, as overrides of ``partcraft train``.

    Attributes:
        overrides: at any scale.
        small, paper: more of them, at that scale alone.
        reported: column -> value that the paper gives.
        curve: which line of the figure it is a point of.
        x: place of that point.
        search: key -> values, as a sweep writes them; the row has those that its search chose.
    """

    overrides: tuple[str, ...] = ()
    small: tuple[str, ...] = ()
    paper: tuple[str, ...] = ()
    reported: dict[str, float] = field(default_factory=dict)
    curve: str = ""
    x: float | None = None
    search: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SearchTerms:
    """The searches of a table, which are of one size for every row that has something to search.

    Attributes:
        overrides: of every trial, beside those of the row: other species than those that the rows are compared on.
        objective: key of ``scores.json``.
        direction: whether it is to be high or low.
        trials: of each search.
        sampler: what proposes them.
        seed: of every trial; none of the table's.
    """

    overrides: tuple[str, ...]
    objective: str
    direction: Literal["maximize", "minimize"]
    trials: Positive
    sampler: Literal["tpe", "random"]
    seed: Count


@dataclass(frozen=True)
class FigureSettings:
    """The figure of a table.

    Attributes:
        kind: "bars" has a bar for each row; "lines" a point for each row, along ``x`` of the rows; "columns" a line for
            each row, along ``x`` of the columns.
        panels: columns that are shown, each in a panel of its own; with "columns" the names of the panels.
        x: what is along the axis.
        log: whether that axis is logarithmic; zero then stands at its left end.
    """

    kind: Literal["bars", "lines", "columns"]
    panels: tuple[str, ...]
    x: str = ""
    log: bool = False


@dataclass(frozen=True)
class ProtocolSettings:
    """What a table compares.

    Attributes:
        name: of the table, and of its folder.
        question: that it answers.
        scales: scale -> overrides that every run has.
        seeds: of training, one run each.
        rows: name -> row.
        columns: name -> column.
        figure: how it is drawn.
        maps: a image in the folder of every run; those of the rows are shown side by side in ``maps.png``.
        tuning: how the settings of rows are searched; None for a table without searches.
        equal_terms: whether rows must have the same images, scores and sampler, and the same number of images that go
            through the denoiser in training, those of prior preservation included.
    """

    name: str
    question: str
    scales: dict[str, list[str]]
    seeds: tuple[int, ...]
    rows: dict[str, RowSettings]
    columns: dict[str, ColumnSettings]
    figure: FigureSettings
    maps: str = ""
    tuning: SearchTerms | None = None
    equal_terms: bool = False

    @property
    def primary(self) -> str | None:
        """Name of the primary column."""
        return next((name for name, column in self.columns.items() if column.primary), None)


@dataclass(frozen=True)
class TableSettings:
    """``partcraft table``.

    Attributes:
        table: the protocol.
        scale: "small" runs on the embedded world, "paper" on the data and the backbone of the paper.
        rows: names of the rows that are wanted; None for all.
        overrides: of every run, beside those of the protocol, with blanks between them.
        launcher: "pool" trains in processes on this machine, "slurm" in jobs of a cluster.
        jobs: training processes at once; the cores are divided among them. None for one per GPU where there are
            several, else one.
        gpus: numbers of the CUDA devices that are dealt out to the processes; None for all.
        slurm: what its jobs are given.
        base: backbone of every run whose row names none; None for that of the protocol. On the command line it is
            ``backbone``.
        tune: search the settings of the rows, and train nothing else.
        allow_dirty: whether the code may have changes that are not committed; the protocol then lists them.
        verify: compute every number again from the stored images and compare, and train nothing.
        level: share of intervals that should hold the true mean.
        resamples: of the bootstrap.
        output_dir: where the table goes; None for ``experiments/<name>``, with another base ``<name>/<base>``.
        paths: where runs are, and what is computed once.
    """

    table: ProtocolSettings
    scale: Literal["small", "paper"]
    rows: tuple[str, ...] | None
    overrides: str
    launcher: Literal["pool", "slurm"]
    jobs: Positive | None
    gpus: tuple[int, ...] | None
    slurm: SlurmSettings
    base: str | None
    tune: bool
    allow_dirty: bool
    verify: bool
    level: Annotated[float, Field(gt=0, le=1)]
    resamples: Annotated[int, Field(ge=100)]
    output_dir: UserPath | None
    paths: PathSettings

    @property
    def folder(self) -> Path:
        """Where the table goes."""
        if self.output_dir is not None:
            return Path(self.output_dir).expanduser()
        return Path("experiments", self.table.name, *(() if self.base is None else (self.base,)))

    @property
    def scheduler(self) -> PoolSettings | SlurmSettings:
        """Where the runs are trained."""
        return self.slurm if self.launcher == "slurm" else PoolSettings(self.jobs, self.gpus)
