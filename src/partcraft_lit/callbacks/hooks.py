"""What callbacks rely on: what the module offers them, when they act, and how they reach loggers of any kind."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from partcraft_lit.core.types import Backbone, LossTerm, TrainingBatch
from partcraft_lit.core.visualization import to_pil


class PartModule(Protocol):
    """What the LightningModule offers to callbacks."""

    backbone: Backbone

    def add_loss_term(self, term: LossTerm) -> None:
        """From now on ``term.weight`` times the term's mean is part of the loss."""
        ...

    def remove_loss_term(self, name: str) -> None: ...

    def request_attention(self) -> None:
        """From now on ``StepOutput.attention_maps`` is filled; requests are counted."""
        ...

    def release_attention(self) -> None: ...

    def generate(
        self,
        prompts: list[str],
        seeds: list[int],
        negative_prompt: str = "",
        steps: int | None = None,
        guidance_scale: float | None = None,
    ) -> Tensor:
        """(B, 3, H, W) uint8, one image per prompt and seed."""
        ...

    def probe_attention(self, batch: TrainingBatch) -> Tensor:
        """(B, T, s, s) attention of each part token in one forward pass that trains nothing."""
        ...


def part_module(module: LightningModule) -> PartModule:
    return cast(PartModule, module)


class EveryNSteps:
    """Fires once when a multiple of ``every`` optimizer steps is reached, however many micro-batches a step has."""

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every}.")
        self.every = every
        self._last = -1

    def start(self, step: int) -> None:
        """Says where training starts, so that the step a run resumes from does not fire again."""
        self._last = step

    def fires(self, step: int) -> bool:
        reached = step != self._last and step % self.every == 0
        self._last = step
        return reached


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """All submodules in evaluation mode and without gradients, and each as it was afterwards.

    ``module.train()`` at the end would also switch on the dropout of frozen networks.
    """
    modes = [(submodule, submodule.training) for submodule in module.modules()]
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for submodule, mode in modes:
            submodule.training = mode


@contextmanager
def warn_on_error(what: str) -> Iterator[None]:
    """Turns an error into a warning: looking at a run must never end it."""
    try:
        yield
    except Exception as error:
        rank_zero_warn(f"{what} failed, training goes on: {type(error).__name__}: {error}", stacklevel=4)
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()


def log_metrics(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """To every logger, on the axis on which Lightning logs: the step that has just ended counts from 0."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=log_step(trainer))


def log_image(trainer: Trainer, key: str, image: Tensor, caption: str) -> None:
    """To every logger that takes images (W&B, ...); the caller writes the files."""
    for logger in trainer.loggers:
        method: Any = getattr(logger, "log_image", None)
        if method is not None:
            method(key=key, images=[to_pil(image)], caption=[caption], step=log_step(trainer))


def log_step(trainer: Trainer) -> int:
    return max(trainer.global_step - 1, 0)
