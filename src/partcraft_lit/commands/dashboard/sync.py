"""Replays the logs of runs into one clean run each, and only what is not there yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from partcraft_lit.callbacks.metrics_log import FILE_NAME, read_rows
from partcraft_lit.commands.dashboard.collect import LoggedRun
from partcraft_lit.commands.train.logs import FINAL_IMAGES, PARTS_IMAGES, log_images, log_results
from partcraft_lit.core import rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages
from partcraft_lit.evaluation import image_scores
from partcraft_lit.loggers.identity import new_run_id
from partcraft_lit.loggers.run_logger import Logged, ReplayLogger

#: Folder of images in a run, by their steps -> what loggers call them.
PANELS = {"samples": "samples/grid", "attention": "attention/overlay", "attention_leakage": "attention/leakage"}
#: Beginnings of metrics that are final scores, not curves; loggers get them as such.
_FINAL = frozenset({"eval", "untrained", "ceiling", "truth", "pictures", "judge", "codes", "tokens"})


def sync(runs: Sequence[LoggedRun], make: Callable[[LoggedRun], Sequence[Any]], stages: Stages) -> dict[str, int]:
    """Replays runs.

    Args:
        runs: in the order in which they are replayed; one that is at work is left to itself.
        make: the loggers of a run, for a replay.
        stages: gets a line for each run.

    Returns:
        Numbers of steps and images that were sent, over all runs.

    Raises:
        UserError: if a service refuses or cannot be reached.
    """
    total = {"runs": 0, "steps": 0, "images": 0}
    for run in runs:
        name = f"{run.identity.name} ({run.folder})"
        if rundir.in_use(run.folder):
            stages.log(f"{name} is at work and logs by itself.")
            continue
        sent = _sync(run, make, stages)
        stages.log(f"{name}: {sent['steps']} steps and {sent['images']} images sent.")
        total = {key: total[key] + sent.get(key, 1) for key in total}
    return total


def _sync(run: LoggedRun, make: Callable[[LoggedRun], Sequence[Any]], stages: Stages) -> dict[str, int]:
    sent = {"steps": 0, "images": 0}
    for logger in _replayable(make(run)):
        logged = logger.logged()
        if logger.trouble is not None and _is_deleted(logger.trouble):
            stages.log(f"{run.identity.name} was deleted there; it becomes a new run.")
            new_run_id(run.folder)
            logger.finish(success=False)
            (logger,) = [again for again in _replayable(make(run)) if type(again) is type(logger)]
            logged = logger.logged()
        if logger.trouble is None:
            for key, number in _replay(run, logger, logged).items():
                sent[key] += number
        logger.finish(success=(run.folder / rundir.FINISHED).is_file())
        if logger.trouble is not None:
            raise UserError(f"{run.folder} was not replayed, or only in part: {logger.trouble}")
    return sent


def _replayable(loggers: Sequence[Any]) -> list[ReplayLogger]:
    """Raises a UserError for a logger that no run can be replayed into."""
    for logger in loggers:
        if not isinstance(logger, ReplayLogger):
            raise UserError("dashboard sync replays into logger=wandb, trackio or mlflow, which have an end.")
    if not loggers:
        raise UserError("dashboard sync needs a logger to replay into: logger=wandb, trackio or mlflow.")
    return list(loggers)


def _is_deleted(trouble: str) -> bool:
    return "409" in trouble or "deleted" in trouble


def _replay(run: LoggedRun, logger: ReplayLogger, logged: Logged) -> dict[str, int]:
    logger.log_hyperparams(dict(run.config))
    images = {key: list(_images(run.folder, folder)) for folder, key in PANELS.items()}
    due = [(step, key, path) for key, shown in images.items() for step, path in shown[logged.count(key) :]]
    rows = list(_missing_rows(run.folder, logged))
    if not logged.count("parts/atlas"):
        log_images(logger, run.folder, PARTS_IMAGES, step=0)
    for step in sorted({step for step, _ in rows} | {step for step, _, _ in due}):
        for row_step, metrics in rows:
            if row_step == step:
                logger.log_metrics(metrics, step)
        for image_step, key, path in due:
            if image_step == step:
                logger.log_image(key, [str(path)], step=step, caption=[f"step {int(path.stem.removeprefix('step_'))}"])
    for name, key in FINAL_IMAGES.items():
        if not logged.count(key):
            log_images(logger, run.folder, {name: key})
    if run.scores and not all(map(logged.count, run.summary)):
        table = run.folder / "evaluation" / image_scores.FILE_NAME
        scored = image_scores.read_rows(table) if table.is_file() else []
        log_results(logger, run.folder, run.scores, scored, tables=not logged.count("eval/parts"))
    return {"steps": len(rows), "images": len(due)}


def _missing_rows(folder: Path, logged: Logged) -> Iterator[tuple[int, dict[str, float]]]:
    """Later steps than the service has; and of its last one, which may be there in part, the metrics that are not."""
    rows = [
        (step, {key: value for key, value in metrics.items() if key.partition("/")[0] not in _FINAL})
        for step, metrics in read_rows(folder / FILE_NAME)
    ]
    until = Counter(key for step, metrics in rows if step <= logged.last_step for key in metrics)
    for step, metrics in rows:
        if step > logged.last_step and metrics:
            yield step, metrics
        elif step == logged.last_step:
            lacking = {key: value for key, value in metrics.items() if logged.count(key) < until[key]}
            if lacking:
                yield step, lacking


def _images(run_folder: Path, folder: str) -> Iterator[tuple[int, Path]]:
    """Images of a panel with the step on the axis of the metrics: a step that has ended counts from 0."""
    for path in sorted((run_folder / folder).glob("step_*.png")):
        yield max(int(path.stem.removeprefix("step_")) - 1, 0), path
