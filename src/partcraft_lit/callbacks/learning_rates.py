"""The learning rates in use, as logged numbers."""

from __future__ import annotations

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer


class LearningRates(Callback):
    """Logs ``train/lr_<group>`` of each parameter group, in the line of the step that it was used in.

    Beside Lightning's ``LearningRateMonitor``, which needs a logger and writes lines of its own.
    """

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        pl_module.log_dict({f"train/lr_{group['name']}": group["lr"] for group in optimizer.param_groups})
