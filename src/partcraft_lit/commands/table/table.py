"""``partcraft table``: trains what is missing, reads what stands, writes the comparison."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from partcraft_lit.commands.table.columns import Column, columns_of, notes_on
from partcraft_lit.commands.table.comparison import Cell, RunScores, compare, corrected, read_run
from partcraft_lit.commands.table.log import CELL_COLUMNS, cell_rows, log_table
from partcraft_lit.commands.table.panels import panels_of
from partcraft_lit.commands.table.settings import TableSettings
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
    """

    row: str
    seed: int
    digest: str
    scoring: str
    budget: str
    task: Task
    evaluation: Callable[[], Path]
    verify: Callable[[], int]


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
    outcome = run_tasks(tasks, settings.scheduler, stages.log, Ledger(folder))
    if outcome.pending:
        return {}
    decided = protocol(settings, table_runs)
    atomic_write(folder / "protocol.json", json.dumps(decided, indent=1, ensure_ascii=False))
    rows, missing = _read(settings, table_runs, outcome.failed)
    if not any(rows.values()):
        raise UserError(_failures_in_words(missing, folder))
    cells = _write(settings, folder, table_runs, rows, missing)
    log_table(make_loggers(), folder, cells, decided)
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
    summary = folder / "summary.csv"
    if not summary.is_file():
        wrong.append(f"{summary} is missing: the table has not been written.")
    elif any(rows.values()):
        cells = _cells(settings, columns_of(settings.table.columns, rows.values()), rows)
        if summary.read_text(encoding="utf-8") != _summary(rows, cells):
            wrong.append(f"{summary} is not what the scores of the images give.")
    if wrong:
        raise UserError(f"The table in {folder} cannot be verified:\n" + "\n".join(wrong))
    stages.log(f"Verified: {images} images were read again, and every number of {folder} is the same.")
    return images


def protocol(settings: TableSettings, table_runs: Sequence[TableRun]) -> dict[str, Any]:
    """Everything that decides the numbers, and its hash."""
    table = asdict(settings.table)
    decides = {
        "scale": settings.scale,
        "overrides": settings.overrides,
        "seeds": list(settings.table.seeds),
        "columns": {name: asdict(column) for name, column in settings.table.columns.items()},
        "runs": [[e.row, e.seed, e.digest, e.scoring] for e in table_runs],
        "level": settings.level,
        "resamples": settings.resamples,
    }
    return {
        "hash": stable_hash(decides)[:12],
        **decides,
        "question": table["question"],
        "budgets": {f"{e.row}, seed {e.seed}": e.budget for e in table_runs},
        "rows": table["rows"],
        "folders": {f"{e.row}, seed {e.seed}": e.task.folder.name for e in table_runs},
        "environment": environment.describe(),
    }


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
    atomic_write(folder / "results.csv", _results(rows))
    atomic_write(folder / "summary.csv", _summary(rows, cells))
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


def _summary(rows: Mapping[str, Sequence[RunScores]], cells: Mapping[str, Mapping[str, Cell]]) -> str:
    """One line per row and column."""
    return csv_text(CELL_COLUMNS, cell_rows(cells, rows))


def _head(column: Column) -> Head:
    block = column.chosen.block if column.chosen.block is not None else column.chosen.panel or ""
    return Head(column.name, column.chosen.higher, column.key, block)


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
    notes.append(f"Protocol `{protocol(settings, table_runs)['hash']}` (protocol.json), scale “{settings.scale}”.")
    commits = sorted({found for runs in rows.values() for run in runs if (found := _commit(run.folder))})
    if len(commits) > 1:
        notes.append(f"The runs were made by different versions of the code: {', '.join(c[:10] for c in commits)}.")
    for name, reason in missing.items():
        notes.append(f"MISSING {name}: {reason.splitlines()[0] if reason else 'unknown'}")
    return notes


def _commit(folder: Path) -> str | None:
    try:
        git = json.loads((folder / "environment.json").read_text(encoding="utf-8")).get("git") or {}
    except (OSError, ValueError):
        return None
    return str(git["commit"]) if "commit" in git else None


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
