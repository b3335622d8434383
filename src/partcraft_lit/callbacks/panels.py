"""Images of a run at fixed steps: what sample grids and attention maps have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from partcraft_lit.callbacks.binding import TrainingRun
from partcraft_lit.callbacks.hooks import EveryNSteps, evaluating, log_image, warn_on_error
from partcraft_lit.core.visualization import save_png


class Panel(Callback, ABC):
    """Draws an image every N optimizer steps, before the first and after the last, into a folder and to the loggers.

    Training does not notice: the random state and the modes of all modules are restored, and a failure is a warning.

    Args:
        every_n_steps: optimizer steps between images.
        subfolder: of the run folder; images go to ``<subfolder>/step_000100.png``.
    """

    #: What is drawn; loggers get it as ``<subfolder>/<kind>``. What a warning calls it.
    kind: str
    title: str

    def __init__(self, every_n_steps: int, subfolder: str) -> None:
        self.subfolder = subfolder
        self._trigger = EveryNSteps(every_n_steps)

    def bind(self, run: TrainingRun) -> None:
        """Takes from the run what does not change while it trains."""
        self.folder = run.folder / self.subfolder

    @abstractmethod
    def draw(self, trainer: Trainer, pl_module: LightningModule) -> Tensor:
        """The image, (3, height, width) uint8."""

    @abstractmethod
    def metadata(self) -> Mapping[str, object]:
        """What the file says of itself, beside the step."""

    def path(self, step: int) -> Path:
        return self.folder / f"step_{step:06d}.png"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trigger.start(trainer.global_step)
        if trainer.global_step == 0:
            self._show(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        # The last one too, before its checkpoint: a run that is killed after that does not train again.
        last = 0 < trainer.max_steps <= step and not self.path(step).exists()
        if self._trigger.fires(step) or last:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (trainer.should_stop or self.path(trainer.global_step).exists()):  # stopped training goes on later
            self._show(trainer, pl_module)

    def _show(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        step = trainer.global_step
        with warn_on_error(f"{self.title} at step {step}"), isolate_rng(), evaluating(pl_module):
            image = self.draw(trainer, pl_module)
            save_png(self.path(step), image, {**self.metadata(), "step": step})
            log_image(trainer, f"{self.subfolder}/{self.kind}", image, caption=f"step {step}")
