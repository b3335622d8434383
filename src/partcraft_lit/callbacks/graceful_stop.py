"""Ends the fit after the step at which a signal or a time limit was noticed, in all processes alike."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from partcraft_lit.callbacks.checkpoint import Checkpoints
from partcraft_lit.core import stopping

_GO_ON, _TIME_LIMIT = -1, 0


class GracefulStop(Callback):
    """Saves the checkpoint of the optimizer step that was just taken, and ends the fit before the next batch.

    While batches are trained, signals are only noted, see :mod:`partcraft_lit.core.stopping`. Each process says at
    each step what it has noted, and the strongest wish is that of all: they stop at the same step, whichever of them
    the signal reached. It comes after all callbacks that look at a step. Lightning's ``Timer`` may also end between two
    batches of one step; and its limit counts earlier starts, so that a run which had reached it could not be continued
    by the same command.

    Args:
        max_seconds: of training in this process; None for no limit.

    Attributes:
        signal: that stopped training; None if none did.
        by_time: whether the limit did.
    """

    def __init__(self, max_seconds: float | None = None) -> None:
        self.max_seconds = max_seconds
        self.signal: int | None = None
        self.by_time = False
        self._started: float | None = None
        self._deferred = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lightning's own handlers would save in the middle of a step where SLURM asks for it, and broadcast from
        whichever process a signal reaches while the others are at something else."""

        def register_nothing() -> None: ...

        trainer._signal_connector.register_signal_handlers = register_nothing  # type: ignore[method-assign]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._deferred.enter_context(stopping.deferred())
        self._step = trainer.global_step
        if self._started is None:  # a fit that goes back to a checkpoint has no time of its own
            self._started = time.monotonic()
        trainer.should_stop = self._decide(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._step:  # else of this batch the gradients were only added up
            self._step = trainer.global_step
            if self._decide(trainer):
                for callback in trainer.checkpoint_callbacks:
                    if isinstance(callback, Checkpoints):
                        callback.save(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # Not earlier: at the end of a step, Lightning would log it although it is none of ``log_every_n_steps``. The
        # module passes over this batch.
        trainer.should_stop = trainer.should_stop or self.decided

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._deferred.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._deferred.close()

    @property
    def decided(self) -> bool:
        return self.by_time or self.signal is not None

    def _decide(self, trainer: Trainer) -> bool:
        wish = self._wish()
        if trainer.world_size > 1:
            wishes = torch.tensor(float(wish), device=trainer.strategy.root_device)
            wish = int(trainer.strategy.reduce(wishes, reduce_op="max"))
        self.by_time = wish == _TIME_LIMIT
        if wish > _TIME_LIMIT:
            self.signal = wish
            stopping.ending()
        return self.decided

    def _wish(self) -> int:
        if (number := stopping.received()) is not None:
            return number
        spent = 0.0 if self._started is None else time.monotonic() - self._started
        return _TIME_LIMIT if self.max_seconds is not None and spent >= self.max_seconds else _GO_ON
