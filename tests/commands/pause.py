"""A callback that lets a training run stand still, so that a test can kill it at a known step."""

from __future__ import annotations

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Pause(Callback):
    """Waits for ever after ``step`` optimizer steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        while trainer.global_step >= self.step:
            time.sleep(1)
