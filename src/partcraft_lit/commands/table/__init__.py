"""``partcraft table``: several methods or settings under one protocol."""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partcraft_lit.commands import evaluate, train
from partcraft_lit.commands.table.settings import SearchTerms, TableSettings
from partcraft_lit.config import cmdline, factories, sources, targets
from partcraft_lit.config import compose as config
from partcraft_lit.config.search import plan_of
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.loggers.identity import grouped
from partcraft_lit.parts.settings import DISCOVERY_REVISION
from partcraft_lit.runs import stored
from partcraft_lit.runs.settings import TrainSettings as TrainSettings
from partcraft_lit.scheduling.gpus import deal
from partcraft_lit.scheduling.slurm import check_slurm

if TYPE_CHECKING:
    from partcraft_lit.commands.table.studies import Chosen
    from partcraft_lit.commands.table.table import TableRun
    from partcraft_lit.commands.table.tuning import RowSearch

#: Unlike a run that is continued, a run of a table has a length of its own.
NOT_HASHED = tuple(key for key in rundir.NOT_HASHED if not key.startswith("trainer.max_"))
#: What every run of a table does without.
_ALWAYS = ("eval.enabled=true", "ckpt_path=auto")


def check(values: Mapping[str, Any]) -> TableSettings:
    if values.get("table") is None:
        names = sorted(path.stem for path in (sources.conf_dir() / "table").glob("*.yaml"))
        raise UserError(f"table=NAME has to be given. Tables: {', '.join(names)}.")
    settings = factories.settings_of(TableSettings, values)
    _check_names(settings)
    if settings.launcher == "slurm":
        check_slurm()
    deal(settings.gpus)
    if settings.tune:
        _check_terms(settings, {row: trial_values(settings, row) for row in _searched_rows(settings)})
    elif not settings.verify:
        _check_terms(settings, {row: run_values(settings, row, settings.table.seeds[0]) for row in rows_of(settings)})
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    folder = factories.settings_of(TableSettings, values).folder
    return folder, f"The table goes to {folder}"


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)

    from partcraft_lit.commands.table.table import compare_rows, verify_table

    if not (settings.verify or settings.allow_dirty):
        check_committed()
    if settings.tune:
        from partcraft_lit.commands.table.tuning import search_rows

        return search_rows(settings, [row_search(settings, row) for row in _searched_rows(settings)])
    table_runs = [table_run(settings, row, seed) for row in rows_of(settings) for seed in settings.table.seeds]
    if settings.verify:
        return verify_table(settings, folder, table_runs)
    with grouped(f"{settings.table.name} {date.today()}"):
        return compare_rows(settings, folder, table_runs, functools.partial(factories.make_loggers, values, folder))


def rows_of(settings: TableSettings) -> list[str]:
    """The rows that are wanted, in the order of the protocol."""
    return [row for row in settings.table.rows if settings.rows is None or row in settings.rows]


def check_committed() -> None:
    """Raises a UserError if the code has changes that no commit has: nobody could make the table again.

    An installed package has a version instead.
    """
    found = environment.checkout()
    if found is None or not found.changed:
        return
    shown = ", ".join(found.changed[:5]) + (f" and {len(found.changed) - 5} more" if len(found.changed) > 5 else "")
    raise UserError(
        f"The code has changes that are not committed: {shown}. Nobody could make this table again. Commit them (new "
        "files too), or start with allow_dirty=true; protocol.json then lists them."
    )


def run_values(settings: TableSettings, row: str, seed: int) -> dict[str, Any]:
    """The whole configuration of one run.

    Raises:
        UserError: if it does not compose, or its values are not those of a training run; it names the row.
    """
    return _composed(tuple(_overrides(settings, row, seed)), f"table.rows.{row}")


def trial_values(settings: TableSettings, row: str) -> dict[str, Any]:
    """The whole configuration of a trial of a row's search, each searched key with one of its values.

    Raises:
        UserError: as ``run_values``, and for a search that cannot be.
    """
    search = settings.table.rows[row].search
    where = f"table.rows.{row}.search"
    overrides = [*_trial_overrides(settings, row), *(f"{key}={values}" for key, values in search.items())]
    try:
        plan = plan_of("train", ["hydra/sweeper=optuna", *overrides])
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    assert plan is not None
    for point in plan.points:
        values = _composed(tuple(point), where)
    return values


def row_search(settings: TableSettings, row: str) -> RowSearch:
    """The search of a row: a command that goes on where it was stopped."""
    from partcraft_lit.commands.table.studies import ended_trials, slug
    from partcraft_lit.commands.table.tuning import RowSearch
    from partcraft_lit.scheduling.tasks import Step, Task, python_command

    terms, asked = _terms(settings), asked_of_search(settings, row)
    # Without the number of trials: with more of them a study goes on.
    digest = rundir.settings_hash(asked, ("search.trials",))
    folder = settings.paths.logs.expanduser().absolute() / "table" / "searches"
    folder /= f"{settings.table.name}-{slug(row)}-{digest}"
    command = python_command(
        *("train", "-m", "hydra/sweeper=optuna", f"hydra.sweeper.n_trials={terms.trials}", "hydra.sweeper.n_jobs=1"),
        *(f"hydra.sweeper.direction={terms.direction}", f"hydra.sweeper.sampler={terms.sampler}"),
        *_trial_overrides(settings, row),
        *(f"{key}={values}" for key, values in settings.table.rows[row].search.items()),
        cmdline.quoted("hydra.sweep.dir", str(folder)),
    )
    try:
        chosen = study_of(settings, row)
    except UserError:
        chosen = None
    step = Step(command, lambda: chosen is not None or ended_trials(folder) >= terms.trials)
    return RowSearch(row, asked, Task(f"search of {row}", folder, (step,), digest), chosen)


def asked_of_search(settings: TableSettings, row: str) -> dict[str, Any]:
    """Everything that decides what a row's search chooses: values of its trials, networks, the search itself."""
    values = _composed(tuple(_trial_overrides(settings, row)), f"table.rows.{row}.search")
    search = {"space": settings.table.rows[row].search, **asdict(_terms(settings))}
    not_of_trials = tuple(key for key in NOT_HASHED if key not in ("eval", "sample"))
    return {**rundir.deciding_values(values, not_of_trials), **_revisions(values), "search": search}


def table_run(settings: TableSettings, row: str, seed: int) -> TableRun:
    """One run with everything that it takes to train and score it."""
    from partcraft_lit.commands.table.table import TableRun
    from partcraft_lit.scheduling.tasks import Step, Task, python_command

    values = run_values(settings, row, seed)
    digest = rundir.settings_hash({**values, **_revisions(values)}, NOT_HASHED)
    folder = run_folder(settings, values, digest)
    chosen = {key: values[key] for key in ("eval", "sample")}
    trained = lambda: (folder / rundir.FINISHED).is_file()  # noqa: E731
    scored = functools.partial(_is_scored, folder, chosen)
    where = cmdline.quoted("hydra.run.dir", str(folder))
    steps = (
        Step(python_command("train", *_overrides(settings, row, seed), where), trained),
        Step(python_command("evaluate", *_scoring_overrides(settings, row, seed, folder)), scored),
    )
    return TableRun(
        row=row,
        seed=seed,
        digest=digest,
        scoring=evaluate.scoring_hash(values),
        budget=_budget(values),
        study=study_of(settings, row),
        task=Task(f"{row}, seed {seed}", folder, steps, f"{digest}-{evaluate.scoring_hash(values)}"),
        evaluation=functools.partial(evaluate.evaluation_folder, folder, chosen),
        verify=functools.partial(_verify, values, folder, scored),
    )


def run_folder(settings: TableSettings, values: Mapping[str, Any], digest: str) -> Path:
    """Where a run is trained: equal settings have one folder, in whichever table they are."""
    name = f"{values['method']['name']}-seed{values['seed']}-{digest}"
    return settings.paths.logs.expanduser().absolute() / "table" / "runs" / name


def study_of(settings: TableSettings, row: str) -> Chosen | None:
    """What the search of a row chose; None for a row whose settings are given.

    Raises:
        UserError: if it has not been searched as the table asks for.
    """
    if not settings.table.rows[row].search or settings.table.tuning is None:
        return None
    from partcraft_lit.commands.table.studies import read_chosen

    return read_chosen(settings.folder, row, asked_of_search(settings, row))


def _overrides(settings: TableSettings, row: str, seed: int) -> Iterator[str]:
    from partcraft_lit.commands.table.studies import as_overrides

    chosen = study_of(settings, row)
    yield from _row_overrides(settings, row)
    yield from () if chosen is None else as_overrides(chosen.overrides)
    yield from shlex.split(settings.overrides)
    yield from _fixed(settings, seed)


def _trial_overrides(settings: TableSettings, row: str) -> Iterator[str]:
    terms = _terms(settings)
    yield from _row_overrides(settings, row)
    yield from terms.overrides
    yield from shlex.split(settings.overrides)
    yield from _fixed(settings, terms.seed)
    yield f"objective={terms.objective}"


def _row_overrides(settings: TableSettings, row: str) -> Iterator[str]:
    chosen = settings.table.rows[row]
    scaled = chosen.small if settings.scale == "small" else chosen.paper
    own = [*settings.table.scales[settings.scale], *chosen.overrides, *scaled]
    yield from own
    if settings.base is not None and not any(text.startswith("backbone=") for text in own):
        yield f"backbone={settings.base}"


def _fixed(settings: TableSettings, seed: int) -> Iterator[str]:
    yield from _ALWAYS
    yield f"seed={seed}"
    for key in ("logs", "store"):
        yield cmdline.quoted(f"paths.{key}", str(getattr(settings.paths, key).expanduser().absolute()))


def _terms(settings: TableSettings) -> SearchTerms:
    assert settings.table.tuning is not None
    return settings.table.tuning


def _searched_rows(settings: TableSettings) -> list[str]:
    return [row for row in rows_of(settings) if settings.table.rows[row].search]


def _check_tuning(settings: TableSettings) -> None:
    """Raises a UserError for searches that cannot be, or whose seed the table is judged by."""
    table, terms = settings.table, settings.table.tuning
    searched = [name for name, row in table.rows.items() if row.search]
    if terms is None:
        if searched or settings.tune:
            which = f"the row '{searched[0]}' has a search" if searched else "tune=true"
            raise UserError(f"{which}, and table={table.name} says nothing of searches: table.tuning is missing.")
        return
    if settings.tune and not _searched_rows(settings):
        raise UserError(
            f"tune=true: none of these rows has anything to search. Those that have: {', '.join(searched)}."
        )
    if terms.seed in table.seeds:
        raise UserError(
            f"table.tuning.seed={terms.seed} is one of table.seeds: the seeds on which settings are chosen must not be "
            "those on which the rows are compared."
        )


def _check_terms(settings: TableSettings, values_of: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises a UserError if the rows of a table with equal terms do not have them."""
    if not settings.table.equal_terms:
        return
    first, *others = values_of
    for row in others:
        for group in ("dataset", "sample", "eval"):
            if values_of[row][group] != values_of[first][group]:
                raise UserError(f"The rows '{first}' and '{row}' of table={settings.table.name} differ in {group}.")
        passes = [forward_passes(values_of[name]) for name in (first, row)]
        if passes[0] != passes[1]:
            raise UserError(
                f"Training sends {passes[0]:,} images through the denoiser in the row '{first}' and {passes[1]:,} in "
                f"'{row}', prior images included; table={settings.table.name} compares rows at equal numbers. Fix "
                "data.batch_size, trainer.accumulate_grad_batches or trainer.max_steps of one of them."
            )


def forward_passes(values: Mapping[str, Any]) -> int:
    """Images that go through the denoiser in training; with prior preservation each comes with a prior image."""
    images: int = values["data"]["batch_size"] * values["trainer"]["accumulate_grad_batches"]
    return int(values["trainer"]["max_steps"]) * images * (2 if values["prior"]["weight"] else 1)


def _scoring_overrides(settings: TableSettings, row: str, seed: int, folder: Path) -> Iterator[str]:
    """The same scores for a run that another table trained."""
    values = run_values(settings, row, seed)
    yield cmdline.quoted("run", str(folder))
    yield cmdline.quoted("paths.logs", str(settings.paths.logs.expanduser().absolute()))
    yield f"trainer.accelerator={values['trainer']['accelerator']}"
    for group in ("eval", "sample"):
        for key in evaluate.chosen_keys(group):
            yield _override(f"{group}.{key}", values[group][key])
    for group, names in (("metrics", "pictures"), ("judges", "judge")):
        for name in values["eval"][names]:
            for key, value in values[group][name].items():
                if not key.startswith("_"):
                    yield _override(f"{group}.{name}.{key}", value)


def _override(key: str, value: Any) -> str:
    return cmdline.quoted(key, value) if isinstance(value, str) else f"{key}={_written(value)}"


def _budget(values: Mapping[str, Any]) -> str:
    """In images that go through the denoiser, so that methods with prior images compare with those without."""
    steps = int(values["trainer"]["max_steps"])
    return f"{steps} steps of {forward_passes(values) // max(steps, 1)} images"


def _written(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not _is_number(value) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@functools.cache
def _composed(overrides: tuple[str, ...], where: str) -> dict[str, Any]:
    try:
        values = config.plain(config.compose("train", overrides))
        train.check(values)
    except UserError as error:
        if str(error).startswith(where):
            raise
        raise UserError(f"{where}: {error}") from error
    return values


def _is_scored(folder: Path, chosen: Mapping[str, Any]) -> bool:
    """Whether the table of scores and all its images are there, and all that is to judge them has."""
    if not (folder / rundir.FINISHED).is_file():
        return False
    from partcraft_lit.evaluation.image_scores import FILE_NAME, read_judges, read_networks, read_rows

    place = evaluate.evaluation_folder(folder, chosen)
    seen = read_networks(place)
    if seen is None:  # of a run before this was written down
        seen = stored.values_of_run(folder)["eval"].get("pictures", [])
    judged = read_judges(place)
    if not (set(chosen["eval"]["pictures"]) <= set(seen) and set(chosen["eval"]["judge"]) <= set(judged)):
        return False
    try:
        return all((place / row["image"]).is_file() for row in read_rows(place / FILE_NAME))
    except UserError:
        return False


def _verify(values: Mapping[str, Any], folder: Path, scored: Any) -> int:
    if not scored():
        raise UserError("it has not been trained and scored, or its images are gone.")
    trained = {**stored.values_of_run(folder), **{key: values[key] for key in ("eval", "sample", "metrics", "judges")}}
    return evaluate.verify_run(trained, evaluate.evaluation_folder(folder, values), folder)


def _revisions(values: Mapping[str, Any]) -> dict[str, Any]:
    """What decides a run beside its settings: the content of its networks, and the revision of discovery."""
    return {"networks": _networks(values), "discovery": DISCOVERY_REVISION}


def _networks(values: Mapping[str, Any]) -> dict[str, str]:
    """What of a run is in files: a new version of the embedded networks makes new runs."""
    package = Path(__file__).resolve().parents[2] / "weights"
    features = targets.choose(values["features"], values["parts"]["features"], "parts.features")
    found = {}
    backbone = values["backbone"]
    own_backbone = backbone.get("packaged", "mini_dit" if backbone["_target_"].endswith("load_mini_dit") else "mini")
    for name, node, own in (("backbone", backbone, own_backbone), ("features", features, "features")):
        given = node.get("path", node.get("source", node.get("model")))
        folder = package / own if given is None else Path(str(given)).expanduser()
        if folder.exists():
            found[name] = _content_hash(folder)
    return found


@functools.cache
def _content_hash(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=8)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        digest.update(file.name.encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "blake2b").digest())
    return digest.hexdigest()


def _check_names(settings: TableSettings) -> None:
    """Raises a UserError for a row, a column or a scale that is named and does not exist."""
    table = settings.table
    for row in settings.rows or ():
        if row not in table.rows:
            raise UserError(f"rows: '{row}' is not a row of table={table.name}. {did_you_mean(row, table.rows)}")
    if settings.scale not in table.scales:
        raise UserError(f"scale={settings.scale}: the table {table.name} has {', '.join(table.scales)}.")
    for name, chosen in table.rows.items():
        for column in chosen.reported:
            if column not in table.columns:
                raise UserError(
                    f"table.rows.{name}.reported.{column}: no such column. {did_you_mean(column, table.columns)}"
                )
    panels = {column.panel for column in table.columns.values()} if table.figure.kind == "columns" else table.columns
    for panel in table.figure.panels:
        if panel not in panels:
            raise UserError(f"table.figure.panels: '{panel}' is none. {did_you_mean(panel, [p for p in panels if p])}")
    if (primary := [name for name, column in table.columns.items() if column.primary])[1:]:
        raise UserError(f"table.columns: one column may be primary, not {len(primary)}: {', '.join(primary)}.")
    _check_tuning(settings)
    if not (table.seeds and table.columns and rows_of(settings)):
        raise UserError(f"The table {table.name} needs at least one seed, one row and one column.")
