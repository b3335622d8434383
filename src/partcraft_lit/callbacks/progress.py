"""Progress of training on the terminal, or as lines in a log file."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from partcraft_lit.callbacks.rate import Rate, count_images
from partcraft_lit.core.settings import NonNegative


class TrainingProgress(ProgressBar):
    """One line: bar, optimizer steps, images/s, time left, and the losses. Where no one watches, a line now and then.

    Lightning's ``RichProgressBar`` counts batches instead of optimizer steps and writes nothing useful to a log file.

    Args:
        line_every_s: seconds between lines where the output is not a terminal.
        console: where to; the terminal by default.
    """

    def __init__(self, line_every_s: NonNegative = 30.0, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console()
        self._line_every_s = line_every_s
        self._enabled = True
        self._rate = Rate()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._first_step = 0
        self._started = self._last_line = 0.0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rate.start()
        self._first_step = trainer.global_step
        self._started = self._last_line = time.monotonic()
        if not self._enabled or not self.console.is_terminal:
            return
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(bar_width=28, complete_style="cyan", finished_style="cyan"),
            MofNCompleteColumn(),
            TextColumn("[cyan]{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("[dim]{task.fields[losses]}"),
            console=self.console,
            refresh_per_second=4,
        )
        self._task = self._progress.add_task(
            "training", total=_total(trainer), completed=trainer.global_step, speed="", losses=""
        )
        self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._rate.batch_done(count_images(batch, trainer.world_size))
        if not self._enabled:
            return
        if self._progress is not None:
            self._progress.update(
                self._task, completed=trainer.global_step, speed=self._speed(), losses=self._losses(trainer)
            )
        elif time.monotonic() - self._last_line >= self._line_every_s:
            self._last_line = time.monotonic()
            self._print_line(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop()
        if self._enabled and not self.console.is_terminal:
            self._print_line(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _print_line(self, trainer: Trainer) -> None:
        total = _total(trainer)
        fields = [f"step {trainer.global_step}" + (f"/{total}" if total else ""), self._speed(), self._losses(trainer)]
        if left := self._time_left(trainer):
            fields.insert(2, f"{left} left")
        self.console.print(
            "training  " + "  ".join(field for field in fields if field), highlight=False, soft_wrap=True
        )

    def _time_left(self, trainer: Trainer) -> str:
        total, done = _total(trainer), trainer.global_step - self._first_step
        if not total or done <= 0 or trainer.global_step >= total:
            return ""
        seconds = (time.monotonic() - self._started) / done * (total - trainer.global_step)
        return str(timedelta(seconds=round(seconds)))

    def _speed(self) -> str:
        speed = self._rate.images_per_second
        return "" if not speed else f"{speed:.0f} images/s" if speed >= 10 else f"{speed:.2g} images/s"

    @staticmethod
    def _losses(trainer: Trainer) -> str:
        losses = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("train/loss")}
        return "  ".join(f"{key.removeprefix('train/')} {float(value):.4f}" for key, value in losses.items())


def _total(trainer: Trainer) -> int | None:
    return trainer.max_steps if trainer.max_steps > 0 else None
