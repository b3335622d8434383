"""``partcraft table tune=true``: a search of one size for each row that has something to search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from partcraft_lit.commands.table.settings import TableSettings
from partcraft_lit.commands.table.studies import Chosen, as_overrides, keep, study_folder
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages
from partcraft_lit.scheduling.ledger import Ledger
from partcraft_lit.scheduling.schedule import run_tasks
from partcraft_lit.scheduling.tasks import Task
from partcraft_lit.search.storage import check_installed


@dataclass(frozen=True)
class RowSearch:
    """The search of one row.

    Attributes:
        row: its name.
        asked: everything that decides the trials.
        task: searches, as far as that is not done.
        chosen: what such a search has chosen already; None if there was none.
    """

    row: str
    asked: Mapping[str, Any]
    task: Task
    chosen: Chosen | None


def search_rows(settings: TableSettings, searches: Sequence[RowSearch]) -> dict[str, Chosen]:
    """Searches the settings of rows, and keeps the studies and what they chose in the folder of the table.

    Returns:
        row -> what was chosen; rows whose search runs on a cluster are not in it.

    Raises:
        UserError: if a search failed; what the others chose has been written by then.
    """
    check_installed()
    terms = settings.table.tuning
    assert terms is not None
    stages = Stages()
    outcome = run_tasks([one.task for one in searches], settings.scheduler, stages.log, Ledger(settings.folder))
    chosen: dict[str, Chosen] = {}
    wrong = [f"{name}: {reason}" for name, reason in outcome.failed.items()]
    for one in searches:
        if one.task.name in outcome.failed or not one.task.is_done():
            continue
        try:
            best = one.chosen or keep(one.task.folder, settings.folder, one.row, terms, one.asked)
        except UserError as error:
            wrong.append(f"{one.row}: {error}")
            continue
        chosen[one.row] = best
        values = " ".join(as_overrides(best.overrides))
        stages.log(f"{one.row}: {values} ({terms.objective} {best.value:.4f}, best of {best.ended} trials)")
        stages.log(f"  {study_folder(settings.folder, one.row)}")
    if wrong:
        raise UserError(f"{len(wrong)} searches failed. The same command goes on with them.\n" + "\n".join(wrong))
    return chosen
