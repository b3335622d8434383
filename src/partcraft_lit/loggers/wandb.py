"""W&B that never ends or holds up a run: whatever happens online costs one line, and the run is logged offline."""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

from partcraft_lit.loggers.guard import Guard
from partcraft_lit.loggers.identity import SWEEP_VARIABLE
from partcraft_lit.loggers.run_logger import STEP, Logged

#: Beginning of a metric's name -> the best of its values, kept in the summary beside the last.
_BEST = {"train/loss": "min", "live/": "max"}
#: Of these the summary has the last value alone, as a plain number: a sweep of W&B can search by it.
_PLAIN = ("live/best",)
#: What the agent of a sweep decides; it warns of whoever else does.
_OF_SWEEPS = ("id", "project", "entity")


class WandbRunLogger(WandbLogger):
    """Lightning's logger for W&B, with a summary, an end, and a guard around whatever can fail.

    A run that is resumed online logs no step that W&B has already.

    Args:
        folder: the run folder.
        run_id: of the run; the same for every start in this folder.
        offline: whether the server is left alone from the beginning.
        init_timeout_s: seconds that the server has for its first answer.
        finish_timeout_s: seconds that uploads have when the run ends.
        artifacts: whether files are kept as artifacts.
        replay: online or not at all; trouble is kept and not warned of.
        options: further arguments of ``wandb.init``.
    """

    def __init__(
        self,
        folder: Path,
        run_id: str,
        *,
        offline: bool,
        init_timeout_s: float,
        finish_timeout_s: float,
        artifacts: bool = False,
        replay: bool = False,
        **options: Any,
    ) -> None:
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=init_timeout_s, finish_timeout=finish_timeout_s
        )
        if replay:  # what W&B writes for a later upload is in the run folder already, as our own log
            folder = Path(tempfile.mkdtemp(prefix="partcraft-"))
        super().__init__(save_dir=folder, dir=folder, id=run_id, offline=offline, settings=settings, **options)
        self._wandb_init.pop("anonymous")  # W&B warns of it
        if os.environ.get(SWEEP_VARIABLE):
            for name in _OF_SWEEPS:
                self._wandb_init.pop(name, None)
        kept = f"The run goes on and is logged in {Path(str(folder)) / 'wandb'}; 'partcraft dashboard sync' uploads it."
        self._guard = Guard("W&B", kept, quiet=replay)
        self._replay = replay
        self._artifacts = artifacts
        self._defined: set[str] = set()
        self._last_step = -1

    @property
    def trouble(self) -> str | None:
        return self._guard.trouble

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = self._start()
            self._experiment.define_metric(STEP)
            self._experiment.define_metric("*", step_metric=STEP, step_sync=True)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        with self._guard():
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with self._guard():
            run = self.experiment  # the run may have to start for its last step to be known
            if step is None:
                run.log(dict(metrics))
            elif step > self._last_step or self._replay:
                for name in metrics.keys() - self._defined:
                    self._define(run, name)
                run.log({**metrics, STEP: step})

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        with self._guard():
            run = self.experiment
            if step is None or step > self._last_step or self._replay:
                shown = [wandb.Image(image, **_row(kwargs, index)) for index, image in enumerate(images)]
                run.log({key: shown} if step is None else {key: shown, STEP: step})

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        if self.trouble is None or self._offline:  # it asks the server, and would wait for it
            with self._guard():
                super().log_table(key, columns, _with_images(data), dataframe, step)

    @rank_zero_only
    def log_summary(self, values: Mapping[str, float]) -> None:
        with self._guard():
            self.experiment.summary.update({k: v if math.isfinite(v) else str(v) for k, v in values.items()})

    @rank_zero_only
    def log_files(self, kind: str, files: Mapping[str, Path]) -> None:
        if self._artifacts and (self.trouble is None or self._offline):
            with self._guard():
                run = self.experiment
                artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
                for name, path in files.items():
                    artifact.add_file(str(path), name)
                run.log_artifact(artifact)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self._guard():
            super().finalize(status)

    @rank_zero_only
    def finish(self, *, success: bool) -> None:
        run = self._experiment
        if run is None or getattr(run, "_is_finished", False):
            return
        with self._guard():
            run.finish(exit_code=0 if success else 1)
        if getattr(run, "_finish_timed_out", False):
            self._guard.tell("the server did not take everything in time")
        if self._replay:
            shutil.rmtree(str(self._save_dir), ignore_errors=True)

    def logged(self) -> Logged:
        with self._guard():
            run = self.experiment
            return self._of_server(run) if run.resumed else Logged()
        return Logged()

    def _of_server(self, run: Any) -> Logged:
        history = wandb.Api().run(f"{run.entity}/{run.project}/{run.id}").historyKeys or {}
        counts = {
            key: sum(int(entry["count"]) for entry in about.get("typeCounts", []))
            for key, about in history.get("keys", {}).items()
        }
        return Logged(self._last_step, counts)

    def _define(self, run: Any, name: str) -> None:
        """By its whole name: of several patterns that fit, W&B takes any."""
        self._defined.add(name)
        for beginning, best in _BEST.items():
            if name.startswith(beginning) and name not in _PLAIN:
                run.define_metric(name, step_metric=STEP, step_sync=True, summary=f"last,{best}")

    def _start(self) -> Any:
        """A run online if that is wanted and possible, else offline; where even the disk refuses, one that is not."""
        disabled = os.environ.get("WANDB_MODE") == "disabled"
        fallback = () if disabled or self._replay else ("offline",)
        modes: Sequence[Any] = (
            (*fallback, "disabled") if self._offline or disabled else ("online", *fallback, "disabled")
        )
        for mode in modes:
            try:
                wandb.setup(wandb.Settings(silent=True))
                # A run of somebody else's in this process stays what it is.
                run = wandb.init(**self._wandb_init, mode=mode, reinit="create_new")
            except Exception as error:  # whatever a server, the network or the disk can come up with
                wandb.teardown()  # else the id counts as taken
                self._guard.tell(str(error) or type(error).__name__)
                self._offline = True
                continue
            if mode == "online":
                # What W&B would print while the run goes on: that something did not arrive.
                messages = logging.Logger(f"{__name__}.messages")
                messages.addHandler(_UploadErrors(self._guard.tell))
                wandb.termsetup(self._wandb_init["settings"], messages)
            if run.resumed:
                self._last_step = int(run.summary.get(STEP, -1))
            return run
        raise AssertionError("a disabled run starts always")


def _row(columns: Mapping[str, Sequence[Any]], index: int) -> dict[str, Any]:
    return {name: values[index] for name, values in columns.items()}


def _with_images(data: list[list[Any]] | None) -> list[list[Any]] | None:
    """A path in a cell is that of an image."""
    if data is None:
        return None
    return [[wandb.Image(str(cell)) if isinstance(cell, Path) else cell for cell in row] for row in data]


class _UploadErrors(logging.Handler):
    """Hands on what says that something did not arrive; W&B also warns of tables that it has already."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"^wandb: (WARNING |ERROR )?", "", record.getMessage())
        if not text.startswith("Artifact "):
            self._tell(text)
