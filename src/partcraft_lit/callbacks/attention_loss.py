"""Attention losses as callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from partcraft_lit.callbacks.hooks import part_module
from partcraft_lit.core.types import LossTerm, StepOutput

#: (attention maps (B, T, s, s), part ids (B, T), label map (B, s, s)) -> (B,) float32.
AttentionLossFunction = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass
class AttentionTerm:
    """An attention loss as the module's loss hook wants it: a :class:`partcraft_lit.core.types.LossTerm`."""

    name: str
    weight: float
    loss: AttentionLossFunction

    def __call__(self, step: StepOutput) -> Tensor:
        if step.attention_maps is None:
            raise RuntimeError(
                f"The loss term {self.name!r} needs attention maps, and this step has none: "
                f"add it through the callback AttentionLoss, which asks the module for them."
            )
        return self.loss(step.attention_maps, step.batch.tokens.part_ids, step.batch.label_map)


class LossTermOnAttention(Callback):
    """Adds a term that reads attention to the loss of every training step.

    It asks the module for attention maps when fitting starts and takes term and request back when fitting ends, also
    when it ends by an exception. Several may act at once, under different names.

    Args:
        term: logged as ``train/loss_<name>``; with the weight 0 it is only logged.

    Raises:
        ValueError: if the weight is negative or not finite.
    """

    def __init__(self, term: LossTerm) -> None:
        if not math.isfinite(term.weight) or term.weight < 0:
            raise ValueError(
                f"The weight of the attention loss {term.name!r} must be finite and not negative, got {term.weight}."
            )
        self.term = term
        self._installed = False

    @property
    def state_key(self) -> str:
        # Lightning refuses two callbacks with one key; without this, two attention losses could not act at once.
        return f"AttentionLoss[{self.term.name}]"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._installed:
            part_module(pl_module).request_attention()
            part_module(pl_module).add_loss_term(self.term)
            self._installed = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._remove(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._remove(pl_module)

    def _remove(self, pl_module: LightningModule) -> None:
        if self._installed:
            part_module(pl_module).remove_loss_term(self.term.name)
            part_module(pl_module).release_attention()
            self._installed = False


class AttentionLoss(LossTermOnAttention):
    """``LossTermOnAttention`` of a pure function.

    Args:
        weight: factor of the term, 0 or more.
        loss: from (attention maps, part ids, label map) to one value per sample, such as
            :func:`partcraft_lit.losses.attention.entropy_attention_loss` with its settings bound.
        name: the term is logged as ``train/loss_<name>``.
    """

    def __init__(self, weight: float, loss: AttentionLossFunction, name: str = "attn") -> None:
        super().__init__(AttentionTerm(name=name, weight=weight, loss=loss))
