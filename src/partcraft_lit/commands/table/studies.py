"""Searches of a table's rows: what each chose, kept beside the table and read by it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from partcraft_lit.commands.table.settings import SearchTerms
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write, make_folder
from partcraft_lit.core.store import stable_hash
from partcraft_lit.search.storage import open_storage

if TYPE_CHECKING:
    from optuna.study import Study

CHOSEN = "chosen.yaml"
SETTINGS = "settings.json"
JOURNAL = "search.journal"
STUDY_NAME = "search"
#: What a search leaves that is worth keeping beside the table.
_KEPT = (JOURNAL, "search.csv", "search.md", "search.png")
_ENDED = ("COMPLETE", "FAIL", "PRUNED")


@dataclass(frozen=True)
class Chosen:
    """What a search chose.

    Attributes:
        row: of the table.
        overrides: key -> value.
        trial: number of the best trial.
        value: of the objective there.
        objective, direction, trials, seed: of the search.
        ended: trials that ended.
        settings: hash of everything that decides the trials, which ``settings.json`` lists.
        journal: hash of the study's file.
    """

    row: str
    overrides: dict[str, Any]
    trial: int
    value: float
    objective: str
    direction: str
    trials: int
    seed: int
    ended: int
    settings: str
    journal: str


def study_folder(table: Path, row: str) -> Path:
    """Where the study of a row is kept."""
    return table / "studies" / slug(row)


def slug(row: str) -> str:
    """A name of a row that can be one of a folder."""
    return re.sub(r"[^\w.-]+", "_", row).strip("_") or "row"


def read_chosen(table: Path, row: str, asked: Mapping[str, Any]) -> Chosen:
    """The settings of a row.

    Args:
        table: folder of the table.
        row: its name.
        asked: everything that decides the trials of the search that the table asks for. Keys that are younger than the
            study do not count: what is new is off unless somebody asks for it.

    Raises:
        UserError: if it has not been searched, or otherwise than the table asks now; it names the differences.
    """
    path = study_folder(table, row) / CHOSEN
    command = "Search first: the same command with tune=true."
    if not path.is_file():
        raise UserError(f"The row '{row}' takes its settings from a search, and {path} is not there. {command}")
    try:
        chosen = Chosen(**yaml.safe_load(path.read_text(encoding="utf-8")))
        searched = json.loads((path.parent / SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read: {error}. Delete it; tune=true writes it again.") from error
    if chosen.settings != stable_hash(searched)[:12]:
        raise UserError(f"{path.parent / SETTINGS} is not that of {CHOSEN} beside it. {command}")
    if differing := list(_differences(searched, _plain(asked))):
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{path} is of another search than the table asks for now: {', '.join(differing[:3])}{more}. {command}"
        )
    return chosen


def _differences(searched: Any, asked: Any, where: str = "") -> Iterator[str]:
    """Keys of what was searched that are asked for otherwise."""
    if isinstance(searched, Mapping) and isinstance(asked, Mapping):
        for key, value in searched.items():
            yield from _differences(value, asked.get(key), f"{where}.{key}" if where else str(key))
    elif searched != asked:
        yield f"{where} was {searched}, is {asked}"


def _plain(values: Mapping[str, Any]) -> Any:
    """As they are read from a file."""
    return json.loads(json.dumps(values, default=str))


def ended_trials(folder: Path) -> int:
    """Trials of the study in a folder that ended, those that were tried again counted once."""
    return 0 if not (folder / JOURNAL).is_file() else _ended(_study(folder))


def keep(search: Path, table: Path, row: str, terms: SearchTerms, asked: Mapping[str, Any]) -> Chosen:
    """Copies a study that ended to the table's folder, and writes down what it chose.

    Args:
        search: folder of the search.
        table: folder of the table.
        row: its name.
        terms: of the search.
        asked: everything that decides the trials.

    Raises:
        UserError: if no trial has a score.
    """
    folder = study_folder(table, row)
    make_folder(folder)
    for name in _KEPT:
        if (search / name).is_file():
            shutil.copyfile(search / name, folder / name)
    journal = (search / JOURNAL).read_text(encoding="utf-8")
    atomic_write(folder / JOURNAL, journal.replace(json.dumps(str(search))[1:-1], "."))  # it names its workers by paths
    settings = _plain(asked)
    atomic_write(folder / SETTINGS, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
    chosen = choice_of(folder, row, terms, stable_hash(settings)[:12])
    text = yaml.safe_dump(asdict(chosen), sort_keys=False, allow_unicode=True)
    atomic_write(folder / CHOSEN, f"# The best trial of the search beside it; {row} in the table.\n{text}")
    return chosen


def choice_of(folder: Path, row: str, terms: SearchTerms, settings: str) -> Chosen:
    """What the study in a folder says.

    Raises:
        UserError: if no trial has a score.
    """
    study = _study(folder)
    if not any(trial.state.name == "COMPLETE" for trial in study.trials):
        raise UserError(f"The search of '{row}' has no trial with a score; {folder / 'search.md'} lists them.")
    best = study.best_trial
    return Chosen(
        row=row,
        overrides=dict(best.params),
        trial=best.number,
        value=float(best.values[0]),
        objective=terms.objective,
        direction=terms.direction,
        trials=terms.trials,
        seed=terms.seed,
        ended=_ended(study),
        settings=settings,
        journal=hashlib.sha256((folder / JOURNAL).read_bytes()).hexdigest()[:16],
    )


def as_overrides(values: Mapping[str, Any]) -> list[str]:
    """Chosen values as they are written on the command line."""
    return [f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values.items()]


def _study(folder: Path) -> Study:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.load_study(study_name=STUDY_NAME, storage=open_storage(str(folder / JOURNAL)))


def _ended(study: Study) -> int:
    from partcraft_lit.search.study import RETRY_OF

    trials = study.get_trials(deepcopy=False)
    ended = [trial for trial in trials if trial.state.name in _ENDED]
    return len(ended) - sum(RETRY_OF in trial.user_attrs for trial in ended)
