"""Speed and memory as logged metrics."""

from __future__ import annotations

import resource
import sys
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from partcraft_lit.callbacks.hooks import EveryNSteps, log_metrics
from partcraft_lit.callbacks.rate import Rate, count_images
from partcraft_lit.core.settings import Positive


class Throughput(Callback):
    """Logs ``perf/images_per_s`` (all processes) and ``perf/max_mem_gb`` (this one's peak: of the GPU if it uses one).

    Beside Lightning's ``ThroughputMonitor``: its median over batches is not distorted by sampling and saving.

    Args:
        every_n_steps: optimizer steps between entries.
    """

    def __init__(self, every_n_steps: Positive = 50) -> None:
        self._trigger = EveryNSteps(every_n_steps)
        self._rate = Rate()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trigger.start(trainer.global_step)
        self._rate.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._rate.batch_done(count_images(batch, trainer.world_size))
        if self._trigger.fires(trainer.global_step) and trainer.is_global_zero:
            metrics = {"perf/max_mem_gb": peak_memory_gb(pl_module.device)}
            if (speed := self._rate.images_per_second) is not None:
                metrics["perf/images_per_s"] = speed
            log_metrics(trainer, metrics)


def peak_memory_gb(device: torch.device) -> float:
    """Peak of the tensors on a GPU, or of the whole process on a CPU, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
