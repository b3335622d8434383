"""``partcraft table``: several methods or settings under one protocol."""

from __future__ import annotations

import functools
import hashlib
import shlex
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from partcraft_lit.commands import evaluate, train
from partcraft_lit.commands.table.settings import TableSettings
from partcraft_lit.config import compose as config
from partcraft_lit.config import factories
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.loggers.identity import grouped
from partcraft_lit.runs import stored
from partcraft_lit.runs.settings import TrainSettings as TrainSettings
from partcraft_lit.scheduling.gpus import deal
from partcraft_lit.scheduling.slurm import check_slurm

if TYPE_CHECKING:
    from partcraft_lit.commands.table.table import TableRun

#: Unlike a run that is continued, a run of a table has a length of its own.
NOT_HASHED = tuple(key for key in rundir.NOT_HASHED if not key.startswith("trainer.max_"))
#: What every run of a table does without.
_ALWAYS = ("eval.enabled=true", "ckpt_path=auto")


def check(values: Mapping[str, Any]) -> TableSettings:
    if values.get("table") is None:
        names = sorted(path.stem for path in (config.conf_dir() / "table").glob("*.yaml"))
        raise UserError(f"table=NAME has to be given. Tables: {', '.join(names)}.")
    settings = factories.settings_of(TableSettings, values)
    _check_names(settings)
    if settings.launcher == "slurm":
        check_slurm()
    deal(settings.gpus)
    for row in rows_of(settings):
        run_values(settings, row, settings.table.seeds[0])
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    given = values["output_dir"]
    folder = Path("experiments") / values["table"]["name"] if given is None else Path(given).expanduser()
    return folder, f"The table goes to {folder}"


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)

    from partcraft_lit.commands.table.table import compare_rows, verify_table

    table_runs = [table_run(settings, row, seed) for row in rows_of(settings) for seed in settings.table.seeds]
    if settings.verify:
        return verify_table(settings, folder, table_runs)
    with grouped(f"{settings.table.name} {date.today()}"):
        return compare_rows(settings, folder, table_runs, functools.partial(factories.make_loggers, values, folder))


def rows_of(settings: TableSettings) -> list[str]:
    """The rows that are wanted, in the order of the protocol."""
    return [row for row in settings.table.rows if settings.rows is None or row in settings.rows]


def run_values(settings: TableSettings, row: str, seed: int) -> dict[str, Any]:
    """The whole configuration of one run.

    Raises:
        UserError: if it does not compose, or its values are not those of a training run; it names the row.
    """
    return _composed(tuple(_overrides(settings, row, seed)), f"table.rows.{row}")


def table_run(settings: TableSettings, row: str, seed: int) -> TableRun:
    """One run with everything that it takes to train and score it."""
    from partcraft_lit.commands.table.table import TableRun
    from partcraft_lit.scheduling.tasks import Step, Task, python_command

    values = run_values(settings, row, seed)
    digest = rundir.settings_hash({**values, "networks": _networks(values)}, NOT_HASHED)
    folder = run_folder(settings, values, digest)
    chosen = {key: values[key] for key in ("eval", "sample")}
    trained = lambda: (folder / rundir.FINISHED).is_file()  # noqa: E731
    scored = functools.partial(_is_scored, folder, chosen)
    where = config.quoted("hydra.run.dir", str(folder))
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
        task=Task(f"{row}, seed {seed}", folder, steps, f"{digest}-{evaluate.scoring_hash(values)}"),
        evaluation=functools.partial(evaluate.evaluation_folder, folder, chosen),
        verify=functools.partial(_verify, values, folder, scored),
    )


def run_folder(settings: TableSettings, values: Mapping[str, Any], digest: str) -> Path:
    """Where a run is trained: equal settings have one folder, in whichever table they are."""
    name = f"{values['method']['name']}-seed{values['seed']}-{digest}"
    return settings.paths.logs.expanduser().absolute() / "table" / "runs" / name


def _overrides(settings: TableSettings, row: str, seed: int) -> Iterator[str]:
    chosen = settings.table.rows[row]
    yield from settings.table.scales[settings.scale]
    yield from chosen.overrides
    yield from chosen.small if settings.scale == "small" else chosen.paper
    yield from shlex.split(settings.overrides)
    yield from _ALWAYS
    yield f"seed={seed}"
    for key in ("logs", "store"):
        yield config.quoted(f"paths.{key}", str(getattr(settings.paths, key).expanduser().absolute()))


def _scoring_overrides(settings: TableSettings, row: str, seed: int, folder: Path) -> Iterator[str]:
    """The same scores for a run that another table trained."""
    values = run_values(settings, row, seed)
    yield config.quoted("run", str(folder))
    yield config.quoted("paths.logs", str(settings.paths.logs.expanduser().absolute()))
    yield f"trainer.accelerator={values['trainer']['accelerator']}"
    for group in ("eval", "sample"):
        for key in evaluate.chosen_keys(group):
            yield _override(f"{group}.{key}", values[group][key])
    for name in values["eval"]["pictures"]:
        for key, value in values["metrics"][name].items():
            if not key.startswith("_"):
                yield _override(f"metrics.{name}.{key}", value)


def _override(key: str, value: Any) -> str:
    return config.quoted(key, value) if isinstance(value, str) else f"{key}={_written(value)}"


def _budget(values: Mapping[str, Any]) -> str:
    images = values["data"]["batch_size"] * values["trainer"]["accumulate_grad_batches"]
    return f"{values['trainer']['max_steps']} steps of {images} images"


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
        raise UserError(f"{where}: {error}") from error
    return values


def _is_scored(folder: Path, chosen: Mapping[str, Any]) -> bool:
    """Whether the table of scores and all its images are there, and every network that is wanted has seen them."""
    if not (folder / rundir.FINISHED).is_file():
        return False
    from partcraft_lit.evaluation.image_scores import FILE_NAME, read_networks, read_rows

    place = evaluate.evaluation_folder(folder, chosen)
    seen = read_networks(place)
    if seen is None:  # of a run before this was written down
        seen = stored.values_of_run(folder)["eval"].get("pictures", [])
    if not set(chosen["eval"]["pictures"]) <= set(seen):
        return False
    try:
        return all((place / row["image"]).is_file() for row in read_rows(place / FILE_NAME))
    except UserError:
        return False


def _verify(values: Mapping[str, Any], folder: Path, scored: Any) -> int:
    if not scored():
        raise UserError("it has not been trained and scored, or its images are gone.")
    trained = {**stored.values_of_run(folder), **{key: values[key] for key in ("eval", "sample", "metrics")}}
    return evaluate.verify_run(trained, evaluate.evaluation_folder(folder, values), folder)


def _networks(values: Mapping[str, Any]) -> dict[str, str]:
    """What of a run is in files: a new version of the embedded networks makes new runs."""
    package = Path(__file__).resolve().parents[2] / "weights"
    features = config.choose(values["features"], values["parts"]["features"], "parts.features")
    found = {}
    for name, node, own in (("backbone", values["backbone"], "mini"), ("features", features, "features")):
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
            raise UserError(f"rows: '{row}' is no row of table={table.name}. {did_you_mean(row, table.rows)}")
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
    if not (table.seeds and table.columns and rows_of(settings)):
        raise UserError(f"The table {table.name} needs at least one seed, one row and one column.")
