"""A callback that sends real signals to its own process, at a known step."""

from __future__ import annotations

import os
import signal
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class Send(Callback):
    """Sends ``name`` after ``step`` optimizer steps, twice, as ``timeout`` does."""

    def __init__(self, step: int, name: str = "SIGTERM") -> None:
        self.step, self.number = step, signal.Signals[name]
        self.sent = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step and not self.sent:
            self.sent = True
            for _ in range(2):
                os.kill(os.getpid(), self.number)
