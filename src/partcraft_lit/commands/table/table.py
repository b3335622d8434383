"""``partcraft table``: trains what is missing, reads what stands, writes the comparison."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from partcraft_lit.commands.table.columns import Column, columns_of, notes_on
from partcraft_lit.commands.table.comparison import Cell, RunScores, compare, corrected, read_run, values_of
from partcraft_lit.commands.table.log import CELL_COLUMNS, cell_rows, log_table
from partcraft_lit.commands.table.panels import panels_of
from partcraft_lit.commands.table.settings import TableSettings
from partcraft_lit.commands.table.studies import CHOSEN, Chosen, choice_of, study_folder
from partcraft_lit.core import environment
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.images import read_image
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import stable_hash
from partcraft_lit.core.visualization import grid, label, save_png
from partcraft_lit.evaluation.image_scores import METADATA
from partcraft_lit.report.table_figure import draw_figure
from partcraft_lit.report.tables import Column as Head
from partcraft_lit.report.tables import Entry, Table, csv_text, latex, markdown
from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.schedule import run_tasks
from partcraft_lit.scheduling.tasks import Task
from partcraft_lit.search.storage import check_installed


@dataclass(frozen=True)
class TableRun:
    """One run of a table.

    Attributes:
        row: which row it belongs to.
        seed: of its training.
        digest: of everything that decides its weights.
        scoring: of everything that decides its images, beside the weights.
        budget: what its training may spend, in words.
        task: trains and scores it, as far as that is not done.
        evaluation: where its scores are, once it has been trained.
        verify: computes its scores again from its images; raises a UserError where they differ.
        study: the search that chose its settings; None for settings that are given.
    """

    row: str
    seed: int
    digest: str
    scoring: str
    budget: str
    task: Task
    evaluation: Callable[[], Path]
    verify: Callable[[], int]
    study: Chosen | None = None


def compare_rows(
    settings: TableSettings, folder: Path, table_runs: Sequence[TableRun], make_loggers: Callable[[], Sequence[Logger]]
) -> dict[str, dict[str, Cell]]:
    """Brings a table up to date.

    Args:
        settings: of the table.
        folder: where it goes.
        table_runs: all its runs.
        make_loggers: where the table goes beside its folder; called when it stands, for training may take days.

    Returns:
        column -> row -> cell; nothing while jobs are at a cluster and are not waited for.

    Raises:
        UserError: if a job failed; the table of all others has been written by then.
    """
    stages = Stages()
    tasks = list({table_run.task.folder: table_run.task for table_run in table_runs}.values())
    decided = write_protocol(settings, folder, table_runs)  # before any run: nothing is decided by what comes out
    outcome = run_tasks(tasks, settings.scheduler, stages.log, Ledger(folder))
    if outcome.pending:
        return {}
    rows, missing = _read(settings, table_runs, {**outcome.failed, **outcome.stopped})
    if not any(rows.values()):
        raise UserError(_failures_in_words(missing, folder))
    cells = _write(settings, folder, table_runs, rows, missing)
    log_table(make_loggers(), folder, cells, decided, roles_of(settings, cells))
    stages.log((folder / "table.md").read_text(encoding="utf-8"))
    stages.log(f"Table: {folder}")
    if missing:
        raise UserError(_failures_in_words(missing, folder))
    return cells


def verify_table(settings: TableSettings, folder: Path, table_runs: Sequence[TableRun]) -> int:
    """``partcraft table verify=true``: every number again from the stored images.

    Returns:
        Number of images that were read.

    Raises:
        UserError: naming everything that is missing or differs.
    """
    stages = Stages()
    wrong: list[str] = []
    images = 0
    for table_run in {table_run.task.folder: table_run for table_run in table_runs}.values():
        try:
            images += table_run.verify()
        except UserError as error:
            wrong.append(f"{table_run.task.name}: {error}")
    rows, missing = _read(settings, table_runs, {})
    wrong += [f"{name}: {reason}" for name, reason in missing.items() if not any(w.startswith(name) for w in wrong)]
    if any(rows.values()):
        columns = columns_of(settings.table.columns, rows.values())
        cells = _cells(settings, columns, rows)
        for name, text in _csv_files(settings, columns, rows, cells).items():
            if not (folder / name).is_file():
                wrong.append(f"{folder / name} is missing: the table has not been written.")
            elif (folder / name).read_text(encoding="utf-8") != text:
                wrong.append(f"{folder / name} is not what the scores of the images give.")
    elif not (folder / "summary.csv").is_file():
        wrong.append(f"{folder / 'summary.csv'} is missing: the table has not been written.")
    wrong += _protocol_differences(settings, folder, table_runs)
    wrong += _study_differences(settings, folder, table_runs)
    if wrong:
        raise UserError(f"The table in {folder} cannot be verified:\n" + "\n".join(wrong))
    stages.log(f"Verified: {images} images were read again, and every number of {folder} is the same.")
    return images


def _protocol_differences(settings: TableSettings, folder: Path, table_runs: Sequence[TableRun]) -> list[str]:
    """Whether the stored protocol is that of these settings, one sentence for each difference."""
    path = folder / "protocol.json"
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return [f"{path} is missing or damaged."]
    now = json.loads(json.dumps(protocol(settings, table_runs)))
    if stored.get("hash") == now["hash"]:
        return []
    differing = [key for key in now if key != "environment" and stored.get(key) != now[key]]
    return [f"{path} is of other settings ({stored.get('hash')}, now {now['hash']}): {', '.join(differing)}."]


def _study_differences(settings: TableSettings, folder: Path, table_runs: Sequence[TableRun]) -> list[str]:
    """Whether what was chosen for each row is the best trial of its study, one sentence for each that is not."""
    wrong = []
    studies = {table_run.row: table_run.study for table_run in table_runs}
    if any(studies.values()):
        check_installed()
    for study in studies.values():
        if study is None or settings.table.tuning is None:
            continue
        place = study_folder(folder, study.row)
        try:
            found = choice_of(place, study.row, settings.table.tuning, study.settings)
        except (UserError, OSError, KeyError) as error:
            wrong.append(f"{place}: its study cannot be read: {error}")
            continue
        if found != study:
            wrong.append(f"{place / CHOSEN} is not what its study says: trial {found.trial}, {found.overrides}.")
    return wrong


def write_protocol(settings: TableSettings, folder: Path, table_runs: Sequence[TableRun]) -> dict[str, Any]:
    """``protocol.json``; returns what it says."""
    decided = protocol(settings, table_runs)
    atomic_write(folder / "protocol.json", json.dumps(decided, indent=1, ensure_ascii=False))
    return decided


def protocol(settings: TableSettings, table_runs: Sequence[TableRun]) -> dict[str, Any]:
    """Everything that decides the numbers, and its hash."""
    table = asdict(settings.table)
    studies = {table_run.row: asdict(table_run.study) for table_run in table_runs if table_run.study is not None}
    decides = {
        "scale": settings.scale,
        "overrides": settings.overrides,
        "seeds": list(settings.table.seeds),
        "columns": {name: asdict(column) for name, column in settings.table.columns.items()},
        "runs": [[e.row, e.seed, e.digest, e.scoring] for e in table_runs],
        "level": settings.level,
        "resamples": settings.resamples,
        "primary": settings.table.primary,
        "base": settings.base,
        "tuning": table["tuning"],
        "studies": studies,
    }
    return {
        "hash": stable_hash(decides)[:12],
        **decides,
        "code": _code(),
        "question": table["question"],
        "budgets": {f"{e.row}, seed {e.seed}": e.budget for e in table_runs},
        "rows": table["rows"],
        "folders": {f"{e.row}, seed {e.seed}": e.task.folder.name for e in table_runs},
        "environment": environment.describe(),
    }


def _code() -> dict[str, Any]:
    """Commit of the code and its changes, or the version of an installed package."""
    found = environment.checkout()
    version = environment.packages().get("partcraft-lit")
    return {"version": version} if found is None else {"version": version, **asdict(found)}


def roles_of(settings: TableSettings, titles: Iterable[str]) -> dict[str, str]:
    """Title of a column -> "primary" or "secondary"; nothing for a table without a primary column."""
    primary = settings.table.primary
    return {} if primary is None else {t: "primary" if t == primary else "secondary" for t in titles}


def _read(
    settings: TableSettings, table_runs: Sequence[TableRun], errors: Mapping[str, str]
) -> tuple[dict[str, list[RunScores]], dict[str, str]]:
    """Row -> its runs as far as they stand; and what is missing, with the reason."""
    rows: dict[str, list[RunScores]] = {table_run.row: [] for table_run in table_runs}
    missing: dict[str, str] = {}
    for table_run in table_runs:
        name = f"{table_run.row}, seed {table_run.seed}"
        if not table_run.task.is_done():
            missing[name] = errors.get(table_run.task.name, "it has not been run, or its images are gone.")
            continue
        try:
            rows[table_run.row].append(read_run(table_run.seed, table_run.task.folder, table_run.evaluation()))
        except UserError as error:
            missing[name] = str(error)
    return rows, missing


def _cells(
    settings: TableSettings, columns: Sequence[Column], rows: Mapping[str, Sequence[RunScores]]
) -> dict[str, dict[str, Cell]]:
    """Title of a column -> row -> cell."""
    of_rows = settings.table.rows
    reported = {
        column.name: {row: of_rows[row].reported[column.name] for row in rows if column.name in of_rows[row].reported}
        for column in columns
    }
    return corrected(
        {
            column.title: compare(rows, column.chosen, reported[column.name], settings.level, settings.resamples)
            for column in columns
        }
    )


def _write(
    settings: TableSettings,
    folder: Path,
    table_runs: Sequence[TableRun],
    rows: Mapping[str, Sequence[RunScores]],
    missing: Mapping[str, str],
) -> dict[str, dict[str, Cell]]:
    columns = columns_of(settings.table.columns, rows.values())
    cells = _cells(settings, columns, rows)
    table = Table(
        title=settings.table.name,
        question=settings.table.question,
        columns=[_head(column) for column in columns],
        rows={row: [_entry(cells[column.title][row]) for column in columns] for row in rows},
        extra={
            "parameters": [_parameters(runs) for runs in rows.values()],
            "training": [_seconds(runs) for runs in rows.values()],
        },
        notes=_notes(settings, table_runs, rows, columns, cells, missing),
    )
    for name, text in _csv_files(settings, columns, rows, cells).items():
        atomic_write(folder / name, text)
    atomic_write(folder / "table.md", markdown(table))
    atomic_write(folder / "table.tex", latex(table))
    draw_figure(folder / "figure.png", settings.table.question, panels_of(settings.table, columns, cells))
    if settings.table.maps:
        _write_maps(folder / "maps.png", settings.table.maps, rows)
    return cells


def _write_maps(path: Path, name: str, rows: Mapping[str, Sequence[RunScores]]) -> None:
    """The image of each row's first run, side by side."""
    found = {row: runs[0].folder / name for row, runs in rows.items() if runs and (runs[0].folder / name).is_file()}
    if found:
        shown = [label(read_image(image), row, "above", size=16) for row, image in found.items()]
        save_png(path, grid(shown, columns=min(len(shown), 3), pad=16, border=16), {"rows": ", ".join(found)})


def _results(rows: Mapping[str, Sequence[RunScores]]) -> str:
    """One line per row, seed and image."""
    lines = [(row, run.seed, run.folder, line) for row, runs in rows.items() for run in runs for line in run.rows]
    scores = dict.fromkeys(key for *_, line in lines for key in line if key not in METADATA)
    columns = ["row", "seed", "run", *(f"picture_{f}" if f == "seed" else f for f in METADATA), *scores]
    values = [
        [row, seed, folder.name, *(line.get(column) for column in METADATA), *(line.get(score) for score in scores)]
        for row, seed, folder, line in lines
    ]
    return csv_text(columns, values)


def _csv_files(
    settings: TableSettings,
    columns: Sequence[Column],
    rows: Mapping[str, Sequence[RunScores]],
    cells: Mapping[str, Mapping[str, Cell]],
) -> dict[str, str]:
    """Name -> text: every value of an image, every value of a run, every cell."""
    files = {
        "results.csv": _results(rows),
        "summary.csv": csv_text(CELL_COLUMNS, cell_rows(cells, rows, roles_of(settings, cells))),
    }
    of_runs = [column for column in columns if column.chosen.per == "run"]
    return {**files, "runs.csv": _run_values(of_runs, rows)} if of_runs else files


def _run_values(columns: Sequence[Column], rows: Mapping[str, Sequence[RunScores]]) -> str:
    """One line per row, seed and column that has one value for each run, as in the table."""
    lines = [
        [row, run.seed, run.folder.name, column.title, column.chosen.metric, value]
        for row, runs in rows.items()
        for column in columns
        for run, [value] in zip(runs, values_of(runs, column.chosen))
    ]
    return csv_text(["row", "seed", "run", "column", "metric", "value"], lines)


def _head(column: Column) -> Head:
    block = column.chosen.block if column.chosen.block is not None else column.chosen.panel or ""
    name = f"{column.name} (primary)" if column.chosen.primary else column.name
    return Head(name, column.chosen.higher, column.key, block)


def _entry(cell: Cell) -> Entry:
    return Entry(cell.mean, cell.low, cell.high, cell.best and cell.distinct, cell.ties, cell.reported)


def _notes(
    settings: TableSettings,
    table_runs: Sequence[TableRun],
    rows: Mapping[str, Sequence[RunScores]],
    columns: Sequence[Column],
    cells: Mapping[str, Mapping[str, Cell]],
    missing: Mapping[str, str],
) -> list[str]:
    of_images = [cells[column.title] for column in columns if column.chosen.per == "image"]
    sizes = sorted({(cell.seeds, cell.images) for column in of_images for cell in column.values() if cell.seeds})
    counts = ", ".join(f"{seeds} × {images}" for seeds, images in sizes)
    notes = [
        f"Mean [{settings.level:.0%} bootstrap interval over seeds and images]; n = seeds × images: {counts}.",
        "Bold is the best of a column where a paired t-test over seeds, corrected for all comparisons of the table "
        "(Holm), tells it from every other row (p < 0.05); ≈ marks the best and the rows that may be as good. "
        "summary.csv has the differences to the best with their intervals and effect sizes.",
    ]
    if settings.table.primary is not None:
        notes.insert(0, f"Primary: {settings.table.primary}. All other columns are secondary.")
    notes += notes_on(columns, rows.values())
    if any(cell.reported is not None for column in cells.values() for cell in column.values()):
        notes.append(
            "Columns with “paper” are as published: the data, the backbone and the networks behind FID are the paper's."
        )
    budgets = list(dict.fromkeys(table_run.budget for table_run in table_runs))
    notes.append(
        f"Every row has the same budget: {budgets[0]}."
        if len(budgets) == 1
        else f"The rows have different budgets: {'; '.join(budgets)}."
    )
    if studies := {table_run.row: table_run.study for table_run in table_runs if table_run.study is not None}:
        sizes_of = sorted({study.trials for study in studies.values()})
        notes.append(
            f"Settings of {len(studies)} rows are the best of {', '.join(map(str, sizes_of))} trials each, on species "
            "that the table does not use (studies/)."
        )
    notes.append(f"Protocol `{protocol(settings, table_runs)['hash']}` (protocol.json), scale “{settings.scale}”.")
    if changed := _code().get("changed"):
        notes.append(f"Written by code with changes that were not committed: {', '.join(changed)}.")
    versions = [found for runs in rows.values() for run in runs if (found := _git_of(run.folder))]
    commits = sorted({str(found["commit"]) for found in versions})
    if len(commits) > 1:
        notes.append(f"The runs were made by different versions of the code: {', '.join(c[:10] for c in commits)}.")
    if dirty := sum(bool(found.get("dirty")) for found in versions):
        notes.append(f"{dirty} of {len(versions)} runs were made by code with changes that were not committed.")
    for name, reason in missing.items():
        notes.append(f"MISSING {name}: {reason.splitlines()[0] if reason else 'unknown'}")
    return notes


def _git_of(folder: Path) -> dict[str, Any] | None:
    """Commit of the code that made a run, and whether it had changes; None where that is not known."""
    try:
        git = json.loads((folder / "environment.json").read_text(encoding="utf-8")).get("git") or {}
    except (OSError, ValueError):
        return None
    return git if "commit" in git else None


def _parameters(runs: Sequence[RunScores]) -> str:
    found = [run.parameters for run in runs if run.parameters is not None]
    return f"{found[0]:,}" if found else "–"


def _seconds(runs: Sequence[RunScores]) -> str:
    found = [run.seconds for run in runs if run.seconds is not None and math.isfinite(run.seconds)]
    if not found:
        return "–"
    seconds = statistics.median(found)
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.1f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def _failures_in_words(missing: Mapping[str, str], folder: Path) -> str:
    lines = [f"{name}: {reason}" for name, reason in missing.items()]
    return f"{len(missing)} runs of the table are missing. The same command tries them again.\n" + "\n".join(lines)
