"""Finds runs and what they logged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from partcraft_lit.callbacks.metrics_log import FILE_NAME, read_metrics
from partcraft_lit.commands.train.logs import CONFIG_FILE, headline
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.loggers.identity import RunIdentity, read_identity
from partcraft_lit.runs.stored import values_of_run
from partcraft_lit.scheduling.ledger import Entry, Ledger


@dataclass(frozen=True)
class LoggedRun:
    """A run folder, finished or not, from this machine or another.

    Attributes:
        folder: with ``metrics.jsonl``.
    """

    folder: Path

    @cached_property
    def identity(self) -> RunIdentity:
        return read_identity(self.folder)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """As loggers got it; of a run that died before, or is older, the configuration alone."""
        try:
            content = json.loads((self.folder / CONFIG_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = values_of_run(self.folder)
        return content if isinstance(content, dict) else {}

    @cached_property
    def scores(self) -> Mapping[str, float]:
        """``scores.json``; empty for a run without."""
        try:
            content = json.loads((self.folder / "scores.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {key: float("nan") if value is None else float(value) for key, value in content.items()}

    @cached_property
    def summary(self) -> Mapping[str, float]:
        """Final scores by the names that loggers have for them."""
        return headline(self.scores)

    @cached_property
    def curves(self) -> Mapping[str, Any]:
        return read_metrics(self.folder / FILE_NAME)

    @property
    def group(self) -> str | None:
        return self.logger_value("group") or self.identity.group

    def logger_value(self, key: str, logger: str = "wandb") -> Any:
        """What the run's own logger of this kind was told; None if it had none."""
        return ((self.config.get("logger") or {}).get(logger) or {}).get(key)


def find_runs(given: Sequence[str], group: str | None, logs: Path) -> list[LoggedRun]:
    """The runs that are meant, oldest first.

    Args:
        given: folders of runs, folders that hold runs, or patterns; none for all in ``logs``.
        group: of these, the sweep or table; None for all that were given, or for the newest group of ``logs``.
        logs: where runs are.

    Raises:
        UserError: if there is no such folder, run or group.
    """
    folders = list(dict.fromkeys(folder for text in given or [str(logs)] for folder in _run_folders(text)))
    found = sorted(map(LoggedRun, folders), key=lambda run: (run.folder / FILE_NAME).stat().st_mtime)
    if not found:
        where = f"runs=[{','.join(given)}]" if given else f"paths.logs={logs}"
        raise UserError(
            f"{where}: no folder there has a {FILE_NAME}. Train one first (partcraft train), or name it, runs=[PATH]."
        )
    if group is not None:
        of_group = [run for run in found if run.group == group]
        if not of_group:
            known = sorted({run.group for run in found if run.group})
            near = did_you_mean(group, known) if known else "None of the runs has a group."
            raise UserError(f"group={group}: no run has it. {near}")
        return of_group
    if given:
        return found
    newest = found[-1]
    return [run for run in found if run.group == newest.group] if newest.group else [newest]


def unfinished(runs: Sequence[LoggedRun]) -> dict[str, str]:
    """Name -> what became of it, for runs without final scores and for jobs of their sweeps that never logged any.

    Args:
        runs: of one sweep or table.
    """
    found: dict[str, str] = {}
    jobs: dict[Path, Entry] = {}
    for sweep in dict.fromkeys(run.folder.parent for run in runs):
        ledger = Ledger(sweep)
        jobs |= {ledger.absolute(entry.folder).resolve(): entry for entry in ledger.latest().values()}
    scored = {run.folder.resolve() for run in runs if run.summary}
    for folder, entry in jobs.items():
        if folder not in scored and entry.status != "done":
            reason = entry.message.removeprefix("partcraft: ").partition("\n")[0]
            found[entry.name] = f"{entry.status}: {reason}" if reason else entry.status
    for run in runs:
        if not run.summary and run.folder.resolve() not in jobs:
            found[run.identity.name or run.folder.name] = "no final scores"
    return found


def _run_folders(text: str) -> Iterator[Path]:
    path = Path(text).expanduser()
    root = Path(path.anchor)
    places = sorted(root.glob(str(path.relative_to(root)))) if any(sign in text for sign in "*?") else [path]
    places = [place for place in places if place.exists()]
    if not places:
        raise UserError(f"runs: there is no folder {text}.")
    for place in places:
        if place.is_file():
            continue
        if (place / FILE_NAME).is_file():
            yield place.resolve()
        else:
            yield from sorted(path.parent.resolve() for path in place.rglob(FILE_NAME))
