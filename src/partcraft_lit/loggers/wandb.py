"""W&B that never ends or holds up a run: whatever happens online costs one line, and the run is logged offline."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only

_log = logging.getLogger(__name__)

_STEP = "trainer/global_step"
#: Beginning of a metric's name -> the best of its values, kept in the summary beside the last.
_BEST = {"train/loss": "min", "live/": "max"}


class WandbRunLogger(WandbLogger):
    """Lightning's logger for W&B, with a summary, an end, and a guard around whatever can fail.

    A run that is resumed online logs no step that W&B has already.

    Args:
        folder: the run folder.
        run_id: of the run; the same for every start in this folder.
        offline: whether the server is left alone from the beginning.
        init_timeout_s: seconds that the server has for its first answer.
        finish_timeout_s: seconds that uploads have when the run ends.
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
        **options: Any,
    ) -> None:
        settings = wandb.Settings(
            silent=True, console="off", init_timeout=init_timeout_s, finish_timeout=finish_timeout_s
        )
        super().__init__(save_dir=folder, dir=folder, id=run_id, offline=offline, settings=settings, **options)
        self._wandb_init.pop("anonymous")  # W&B warns of it
        self._trouble: str | None = None
        self._defined: set[str] = set()
        self._last_step = -1

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            self._experiment = self._start()
            self._experiment.define_metric(_STEP)
            self._experiment.define_metric("*", step_metric=_STEP, step_sync=True)
        return self._experiment

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        with self._guarded():
            super().log_hyperparams(params)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        with self._guarded():
            run = self.experiment  # the run may have to start for its last step to be known
            if step is None:
                run.log(dict(metrics))
            elif step > self._last_step:
                for name in metrics.keys() - self._defined:
                    self._define(run, name)
                run.log({**metrics, _STEP: step})

    @rank_zero_only
    def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
        with self._guarded():
            super().log_image(key, images, step, **kwargs)

    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        if self._trouble is None or self._offline:  # it asks the server, and would wait for it
            with self._guarded():
                super().log_table(key, columns, _with_images(data), dataframe, step)

    @rank_zero_only
    def log_summary(self, values: Mapping[str, float]) -> None:
        with self._guarded():
            self.experiment.summary.update({k: v if math.isfinite(v) else str(v) for k, v in values.items()})

    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self._guarded():
            super().finalize(status)

    @rank_zero_only
    def finish(self, *, success: bool) -> None:
        run = self._experiment
        if run is None or getattr(run, "_is_finished", False):
            return
        with self._guarded():
            run.finish(exit_code=0 if success else 1)
        if getattr(run, "_finish_timed_out", False):
            self._tell("the server did not take everything in time")

    def _define(self, run: Any, name: str) -> None:
        """By its whole name: of several patterns that fit, W&B takes any."""
        self._defined.add(name)
        for beginning, best in _BEST.items():
            if name.startswith(beginning):
                run.define_metric(name, step_metric=_STEP, step_sync=True, summary=f"last,{best}")

    def _start(self) -> Any:
        """A run online if that is wanted and possible, else offline; where even the disk refuses, one that is not."""
        disabled = os.environ.get("WANDB_MODE") == "disabled"
        modes: Sequence[Any] = ("disabled",) if disabled else ("offline", "disabled")
        for mode in modes if self._offline or disabled else ("online", *modes):
            try:
                wandb.setup(wandb.Settings(silent=True))
                # A run of somebody else's in this process stays what it is.
                run = wandb.init(**self._wandb_init, mode=mode, reinit="create_new")
            except Exception as error:  # whatever a server, the network or the disk can come up with
                wandb.teardown()  # else the id counts as taken
                self._tell(str(error) or type(error).__name__)
                self._offline = True
                continue
            if mode == "online":
                # What W&B would print while the run goes on: that something did not arrive.
                messages = logging.Logger(f"{__name__}.messages")
                messages.addHandler(_Told(self._tell))
                wandb.termsetup(self._wandb_init["settings"], messages)
            if run.resumed:
                self._last_step = int(run.summary.get(_STEP, -1))
            return run
        raise AssertionError("a disabled run starts always")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # likewise
            self._tell(str(error) or type(error).__name__)

    def _tell(self, reason: str) -> None:
        """The one line."""
        if self._trouble is not None:
            return
        self._trouble = reason
        first = " ".join(reason.split())[:200]
        _log.warning(
            "W&B: %s. The run goes on and is logged in %s; 'wandb sync' uploads that later.",
            first.rstrip("."),
            Path(str(self._save_dir)) / "wandb",
        )


def _with_images(data: list[list[Any]] | None) -> list[list[Any]] | None:
    """A path in a cell is that of an image."""
    if data is None:
        return None
    return [[wandb.Image(str(cell)) if isinstance(cell, Path) else cell for cell in row] for row in data]


class _Told(logging.Handler):
    """Hands on what says that something did not arrive; W&B also warns of tables that it has already."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        text = re.sub(r"^wandb: (WARNING |ERROR )?", "", record.getMessage())
        if not text.startswith("Artifact "):
            self._tell(text)
