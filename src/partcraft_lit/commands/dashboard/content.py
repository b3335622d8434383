"""What the dashboard of a sweep or table shows: which settings differ, and which of what was logged is there."""

from __future__ import annotations

import fnmatch
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from partcraft_lit.commands.dashboard.collect import LoggedRun, unfinished
from partcraft_lit.commands.dashboard.sync import PANELS
from partcraft_lit.commands.train.logs import FINAL_IMAGES, PARTS_IMAGES
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.plotting import number
from partcraft_lit.core.rundir import NOT_HASHED

#: In the logged configuration beside settings: what came of them, and what another machine has otherwise.
_NO_SETTINGS = (
    "effective",
    "packages",
    "settings_hash",
    "dataset",
    "features",
    "metrics",
    "judges",
    "experiment",
    *NOT_HASHED,
)
#: More axes than this nobody reads.
_MOST_PARAMETERS = 8
#: Positive values that span more than this are on a logarithmic axis.
_WIDE = 30.0
_CURVES = ("train/loss", "train/loss_attn", "live/score", "live/emr", "live/cosim", "live/attention_inside")
_OF_PARTS = {"EMR": "live/emr_", "attention inside": "parts/attention_inside_"}
#: Scores of which less is better.
_LOWER = ("fid", "kid", "copied")
_NO_RUN = "none of these runs has it."


@dataclass(frozen=True)
class Parameter:
    """A setting in which runs differ.

    Attributes:
        name: as in the configuration: ``loss.lambda_attn``.
        log: whether its values span orders of magnitude.
    """

    name: str
    log: bool


@dataclass(frozen=True)
class Score:
    """A final score.

    Attributes:
        key: in the summary of the runs.
        lower: whether less is better.
    """

    key: str
    lower: bool


@dataclass(frozen=True)
class Content:
    """What is shown of some runs; every name is one that at least one of them has logged.

    Attributes:
        title: of the sweep or table.
        group: by which the runs are found in W&B; None to take all of the project.
        parameters: that differ, those with most values first, the seed last.
        scores: that were asked for.
        curves: of the whole run over its steps.
        part_curves: heading -> curves, one for each part.
        panels: images over the steps.
        stills: images of the beginning and the end.
        tables: whether there are tables of parts and images.
        table: Markdown, means over seeds.
        unfinished: name -> what became of it, for runs that are not in the table.
    """

    title: str
    group: str | None
    parameters: Sequence[Parameter]
    scores: Sequence[Score]
    curves: Sequence[str]
    part_curves: Mapping[str, Sequence[str]]
    panels: Sequence[str]
    stills: Sequence[str]
    tables: bool
    table: str
    unfinished: Mapping[str, str]


def content_of(runs: Sequence[LoggedRun], parameters: Sequence[str] | None, scores: Sequence[str]) -> Content:
    """Looks through runs.

    Args:
        runs: of one sweep or table, if they are to be found in W&B by it.
        parameters: settings along the axes; None for those that differ.
        scores: names or patterns, with or without protocol.

    Raises:
        UserError: for a parameter that no run has, or runs of several groups.
    """
    groups = {run.group for run in runs}
    if len(groups) > 1:
        named = ", ".join(sorted(str(group) for group in groups))
        raise UserError(f"These runs are of several groups: {named}. Choose one, group=NAME.")
    (group,) = groups
    settings = [dict(_settings(run.config)) for run in runs]
    chosen = _differing(settings) if parameters is None else _asked(parameters, settings)
    found = _scores(runs, scores)
    logged = dict.fromkeys(key for run in runs for key in run.curves)
    return Content(
        title=group or runs[0].identity.name,
        group=group,
        parameters=chosen,
        scores=found,
        curves=[key for key in _CURVES if key in logged],
        part_curves={name: of_parts for name, start in _OF_PARTS.items() if (of_parts := _starting(logged, start))},
        panels=[key for folder, key in PANELS.items() if any((run.folder / folder).is_dir() for run in runs)],
        stills=[
            key
            for name, key in {**PARTS_IMAGES, **FINAL_IMAGES}.items()
            if any((run.folder / name).is_file() for run in runs)
        ],
        tables=any(run.scores for run in runs),
        table=_table(runs, settings, chosen, found),
        unfinished=unfinished(runs),
    )


def _settings(config: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{where}.{key}" if where else str(key)
        if name in _NO_SETTINGS or str(key).startswith("_"):
            continue
        if isinstance(value, Mapping):
            yield from _settings(value, name)
        elif isinstance(value, str | int | float) or value is None:
            yield name, value


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[Parameter]:
    values = {
        name: {run.get(name) for run in settings} for name in dict.fromkeys(key for run in settings for key in run)
    }
    several = [name for name, found in values.items() if len(found) > 1]
    several.sort(key=lambda name: (name == "seed", -len(values[name])))
    return [Parameter(name, _is_wide(values[name])) for name in several[:_MOST_PARAMETERS]]


def _asked(names: Sequence[str], settings: Sequence[Mapping[str, Any]]) -> list[Parameter]:
    for name in names:
        if not any(name in run for run in settings):
            raise UserError(f"parameters: '{name}': {_NO_RUN} {did_you_mean(name, settings[0])}")
    return [Parameter(name, _is_wide({run.get(name) for run in settings})) for name in names]


def _is_wide(values: set[Any]) -> bool:
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    positive = [value for value in numbers if value > 0]
    return (
        len(numbers) == len(values)
        and min(numbers) >= 0
        and len(positive) > 1
        and max(positive) / min(positive) >= _WIDE
    )


def _scores(runs: Sequence[LoggedRun], wanted: Sequence[str]) -> list[Score]:
    """Of the protocols the reconstruction, and of the hybrids those of most species."""
    known = list(dict.fromkeys(key for run in runs for key in run.summary if key.startswith("eval/")))
    protocols = sorted({key.rpartition("@")[2] for key in known})
    hybrids = [name for name in protocols if name.endswith("_species")]
    shown = {"reconstruction", *hybrids[-1:]} & set(protocols) or set(protocols)
    found = []
    for pattern in wanted:
        for key in known:
            name = key.removeprefix("eval/")
            exact = fnmatch.fnmatch(name, pattern) and "@" in pattern
            if exact or (fnmatch.fnmatch(name, f"{pattern}@*") and key.rpartition("@")[2] in shown):
                found.append(Score(key, name.startswith(_LOWER)))
    return list(dict.fromkeys(found))


def _starting(logged: Mapping[str, Any], beginning: str) -> list[str]:
    return [key for key in logged if key.startswith(beginning)]


def _table(
    runs: Sequence[LoggedRun],
    settings: Sequence[Mapping[str, Any]],
    parameters: Sequence[Parameter],
    scores: Sequence[Score],
) -> str:
    """Mean over the seeds, with their standard deviation; a row for each setting."""
    names = [parameter.name for parameter in parameters if parameter.name != "seed"]
    rows: dict[tuple[Any, ...], list[LoggedRun]] = {}
    for run, values in zip(runs, settings, strict=True):
        if run.summary:
            rows.setdefault(tuple(values.get(name) for name in names), []).append(run)
    heads = [*names, "runs", *(score.key.removeprefix("eval/") for score in scores)]
    lines = [heads, ["---"] * len(heads)]
    for setting, of_row in sorted(rows.items(), key=lambda row: tuple((isinstance(v, str), v or 0) for v in row[0])):
        cells = [_cell([run.summary[score.key] for run in of_row if score.key in run.summary]) for score in scores]
        lines.append([*map(str, setting), str(len(of_row)), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(values: Sequence[float]) -> str:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return "–"
    spread = f" ± {number(statistics.stdev(finite))}" if len(finite) > 1 else ""
    return number(statistics.fmean(finite)) + spread
