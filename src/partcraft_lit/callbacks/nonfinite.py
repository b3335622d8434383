"""Steps whose loss or gradients are not finite change nothing, and several in a row end the fit."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from partcraft_lit.callbacks.binding import TrainingRun
from partcraft_lit.core.types import TrainingBatch

#: Images that a message names.
_NAMED = 8
#: Steps that a verdict of a GPU may take to arrive.
_LAG = 4


class NonFiniteTraining(Exception):
    """Too many steps in a row were not finite."""


class SkipNonFinite(Callback):
    """Skips optimizer steps whose loss or gradients are not finite, and says what they were computed from.

    The verdict stays on the device, where a fused optimizer reads it as ``found_inf`` and leaves parameters and state
    as they are; on a GPU the message comes a few steps later, so that no step waits for it. What a ``GradScaler`` finds
    in scaled gradients is its own business: there only the loss is looked at.

    Args:
        limit: steps in a row that end the fit.

    Raises:
        NonFiniteTraining: after ``limit`` such steps in a row, from within ``trainer.fit``.
    """

    def __init__(self, limit: int = 3) -> None:
        self.limit = limit

    def bind(self, run: TrainingRun) -> None:
        self._image_name: Callable[[int], str] = run.image_name

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._in_a_row = 0
        self._batches: list[TrainingBatch] = []
        self._losses: list[Tensor] = []
        self._pending: deque[_Verdict] = deque()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: TrainingBatch, batch_idx: int
    ) -> None:
        self._batches.append(batch)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        values = torch.stack(self._losses)
        if getattr(trainer.precision_plugin, "scaler", None) is None:
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            values = torch.cat([values, torch.nn.utils.get_total_norm(gradients, norm_type=1.0)[None]])
        found = (~values.isfinite()).any().float()
        if trainer.world_size > 1:  # a loss is that of one process
            found = trainer.strategy.reduce(found, reduce_op="max")
        optimizer.found_inf = found
        self._pending.append(_Verdict(trainer.global_step, found, self._batches))
        self._batches, self._losses = [], []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # As many steps later in every process: one that ended before the others would leave them waiting.
        while self._pending and len(self._pending) > (0 if self._pending[0].event is None else _LAG):
            self._judge(trainer, self._pending.popleft())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        while self._pending:
            self._judge(trainer, self._pending.popleft())

    def _judge(self, trainer: Trainer, verdict: _Verdict) -> None:
        if not verdict.wait():
            self._in_a_row = 0
            return
        self._in_a_row += 1
        step = f"step {verdict.step}, {self._describe(verdict.batches)}; {trainer.precision} training"
        rank_zero_warn(f"The loss or a gradient is not finite, and the step is skipped: {step}.")
        if self._in_a_row >= self.limit:
            raise NonFiniteTraining(f"{self.limit} steps in a row had a loss or gradients that are not finite: {step}.")

    def _describe(self, batches: Sequence[TrainingBatch]) -> str:
        shown = []
        for batch in batches:
            prior = [False] * len(batch.image_ids) if batch.prior is None else batch.prior.tolist()
            images, timesteps = batch.image_ids.tolist(), batch.timesteps.tolist()
            for image, timestep, is_prior in zip(images, timesteps, prior, strict=True):
                name = f"prior image {image}" if is_prior else self._image_name(image)
                shown.append(f"{name} at timestep {timestep}")
        more = f" and {len(shown) - _NAMED} more" if len(shown) > _NAMED else ""
        return ", ".join(shown[:_NAMED]) + f"{more}; latents {str(batches[0].latents.dtype).removeprefix('torch.')}"


@dataclass
class _Verdict:
    """Whether a step was not finite, on its way from the device."""

    step: int
    found: Tensor
    batches: Sequence[TrainingBatch]

    def __post_init__(self) -> None:
        self.event = None
        if self.found.device.type == "cuda":
            self.found = self.found.to("cpu", non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record()

    def wait(self) -> bool:
        if self.event is not None:
            self.event.synchronize()
        return bool(self.found)
