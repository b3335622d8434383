"""Every logged metric as a line of JSON, for readers without an account anywhere."""

from __future__ import annotations

import json
import math
import os
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from partcraft_lit.callbacks.binding import TrainingRun
from partcraft_lit.core.files import atomic_write

FILE_NAME = "metrics.jsonl"


class MetricsLog(Callback):
    """Appends to ``metrics.jsonl`` whatever goes to Lightning's loggers, by ``self.log`` or otherwise.

    A line is ``{"step": 12, "time": 1736500000.0, "train/loss": 0.41, ...}``; steps count from 0, as on the axis of
    other loggers. When a run resumes at step s, lines of step s and later are dropped: they belong to updates that are
    lost and come again, so that the file reads as if the run had never stopped. For that, what Lightning logs after the
    hooks of a step is written in them: a checkpoint, which comes last there, never stands without the lines before it.
    """

    def bind(self, run: TrainingRun) -> None:
        self.logger = JsonlLogger(run.folder / FILE_NAME)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # As a logger beside the others it hears everything; a callback's own hooks run before a step's metrics are out.
        if self.logger not in trainer.loggers:
            trainer.loggers = [*trainer.loggers, self.logger]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        if trainer.is_global_zero:
            drop_from_step(self.logger.path, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:  # a batch of which the optimizer only adds up gradients
            return
        self._step = step
        every = cast(Any, trainer).log_every_n_steps  # Lightning declares it nowhere
        if trainer.is_global_zero and every and step % every == 0:
            metrics = {key: float(value) for key, value in trainer.logged_metrics.items()}
            if metrics:
                self.logger.log_early({**metrics, "epoch": trainer.current_epoch}, step - 1)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.loggers = [logger for logger in trainer.loggers if logger is not self.logger]


class JsonlLogger(Logger):
    """A Lightning logger that writes lines of JSON."""

    def __init__(self, path: Path | str) -> None:
        super().__init__()
        self.path = Path(path)
        self._early: tuple[int, dict[str, float]] | None = None

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self.path.parent)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is not None and self._early == (step, dict(metrics)):
            return  # written already
        append_metrics(self.path, 0 if step is None else step, metrics)

    @rank_zero_only
    def log_early(self, metrics: Mapping[str, float], step: int) -> None:
        """Writes what Lightning will log a moment later, and does not then."""
        self.log_metrics(metrics, step)
        self._early = step, dict(metrics)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder has the whole configuration."""


def append_metrics(path: Path | str, step: int, metrics: Mapping[str, float]) -> None:
    """Adds one line, in one write, so that a process that is killed leaves at most one unfinished line."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {"step": int(step), "time": round(time.time(), 3), **{key: _encode(value) for key, value in metrics.items()}}
    data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
    if _ends_unfinished(path):
        data = b"\n" + data
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, data)
    finally:
        os.close(handle)


def replace_metrics(path: Path | str, step: int, numbers: Mapping[str, float]) -> None:
    """Adds one line in place of those with the same keys, as final values that are computed again have."""
    path = Path(path)
    kept = [line for line in _lines(path) if line.keys() - {"step", "time"} != numbers.keys()]
    _rewrite(path, kept)
    append_metrics(path, step, numbers)


def read_metrics(path: Path | str) -> dict[str, list[tuple[int, float]]]:
    """Curves: for each key its (step, value) points by step; the later line wins where a step has two.

    A line that is not JSON, as a killed process leaves it, is passed over. A missing file has no curves.
    """
    curves: dict[str, dict[int, float]] = {}
    for line in _lines(Path(path)):
        step = int(line.pop("step"))
        for key, value in line.items():
            if key not in ("time", "epoch"):
                curves.setdefault(key, {})[step] = _decode(value)
    return {key: sorted(points.items()) for key, points in curves.items()}


def read_rows(path: Path | str) -> list[tuple[int, dict[str, float]]]:
    """(step, metrics) by step, one row for each; the later value wins where a step has two."""
    rows: dict[int, dict[str, float]] = {}
    for line in _lines(Path(path)):
        values = {key: _decode(value) for key, value in line.items() if key not in ("step", "time")}
        rows.setdefault(int(line["step"]), {}).update(values)
    return sorted(rows.items())


def drop_from_step(path: Path | str, step: int) -> None:
    """Removes the lines of ``step`` and later, and unfinished ones; rewrites only if there are any."""
    path = Path(path)
    if not path.exists():
        return
    _rewrite(path, [line for line in _lines(path) if line["step"] < step])


def _rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    """Only if the file has anything else."""
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if path.exists() and text.encode() != path.read_bytes():
        atomic_write(path, text)


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    lines = []
    for text in path.read_bytes().split(b"\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "step" in line:
            lines.append(line)
    return lines


def _ends_unfinished(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _encode(value: float) -> float | str:
    """JSON has no NaN and no infinity; a diverged loss must show in the file all the same."""
    number = float(value)
    return number if math.isfinite(number) else str(number)


def _decode(value: float | str) -> float:
    return float(value)
