"""Terms of the training loss beside the diffusion loss, as callbacks.

The module has one hook for them, ``add_loss_term``; whatever is a :class:`partcraft_lit.core.types.LossTerm` can be
added. From YAML a term comes in one of two ways, and both end here:

- An attention loss is a row of the table ``attention``, a pure function of the attention maps; ``loss.attention`` names
  the row and ``loss.lambda_attn`` is its weight.
- Any other term is an entry of ``loss_terms``: ``_target_`` names a function of the whole
  :class:`partcraft_lit.core.types.StepOutput`, ``weight`` is its factor, all other keys are arguments. On the command
  line ``+loss_terms.tv._target_=my_package.total_variation +loss_terms.tv.weight=0.1``.

``loss.lambda_attn`` takes four steps from YAML to the loss: ``LossSettings.lambda_attn``,
``config.factories.make_callbacks``, the weight of the term of :class:`AttentionLoss`, and the module, which adds
``term.weight`` times the term in ``training_step``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from partcraft_lit.callbacks.binding import TrainingRun
from partcraft_lit.callbacks.hooks import part_module
from partcraft_lit.core.types import LossTerm, StepOutput
from partcraft_lit.losses.objective import objective_of
from partcraft_lit.losses.settings import TimestepWeight
from partcraft_lit.losses.timestep_weights import timestep_weights

#: (attention maps (B, T, s, s), part ids (B, T), label map (B, s, s)) -> (B,) float32; in a run also the keyword
#: ``num_parts``, which is known after discovery.
AttentionLossFunction = Callable[..., Tensor]


@dataclass
class AttentionTerm:
    """A function of the attention maps as a loss term."""

    name: str
    weight: float
    loss: AttentionLossFunction
    reads_attention: bool = True
    #: (B,) timesteps -> factor of each sample; None for ones.
    timestep_weights: Callable[[Tensor], Tensor] | None = None

    def __call__(self, step: StepOutput) -> Tensor:
        if step.attention_maps is None:
            raise RuntimeError(
                f"The loss term {self.name!r} needs attention maps, and this step has none: "
                f"add it through the callback AddLossTerm, which asks the module for them."
            )
        values = self.loss(step.attention_maps, step.batch.tokens.part_ids, step.batch.label_map)
        if self.timestep_weights is None:
            return values
        return values * self.timestep_weights(step.batch.timesteps)


@dataclass
class StepTerm:
    """A function of the whole step as a loss term: (B,) values of one forward pass, without attention maps."""

    name: str
    weight: float
    loss: Callable[[StepOutput], Tensor]
    reads_attention: bool = False

    def __call__(self, step: StepOutput) -> Tensor:
        return self.loss(step)


class AddLossTerm(Callback):
    """Adds a term to the loss of every training step.

    When fitting starts it adds the term, and asks the module for attention maps if the term reads them; when fitting
    ends, also by an exception, it takes both back. Several may act at once, under different names.

    Args:
        term: logged as ``train/loss_<name>``; with the weight 0 it is only logged.

    Raises:
        ValueError: if the weight is negative or not finite.
    """

    def __init__(self, term: LossTerm) -> None:
        if not math.isfinite(term.weight) or term.weight < 0:
            raise ValueError(
                f"The weight of the loss term {term.name!r} must be finite and not negative, got {term.weight}."
            )
        self.term = term
        self._installed = False

    @property
    def state_key(self) -> str:
        # Lightning refuses two callbacks with one key; without this, two terms could not act at once.
        return f"LossTerm[{self.term.name}]"

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._installed:
            if self.term.reads_attention:
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
            if self.term.reads_attention:
                part_module(pl_module).release_attention()
            self._installed = False


class AttentionLoss(AddLossTerm):
    """``AddLossTerm`` of a pure function of the attention maps.

    Args:
        weight: factor of the term, 0 or more.
        loss: from (attention maps, part ids, label map) to one value per sample, such as
            :func:`partcraft_lit.losses.attention.entropy_attention_loss` with its settings bound. In a run it is given
            ``num_parts`` by ``bind``.
        name: the term is logged as ``train/loss_<name>``.
        end: weight at the trainer's last step, reached linearly; None for ``weight``.
        timesteps: at which the term counts, see ``losses.timestep_weights``.
    """

    term: AttentionTerm

    def __init__(
        self,
        weight: float,
        loss: AttentionLossFunction,
        name: str = "attn",
        end: float | None = None,
        timesteps: TimestepWeight = "all",
    ) -> None:
        super().__init__(AttentionTerm(name=name, weight=weight, loss=loss))
        self._start, self._end, self._timesteps = weight, end, timesteps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._timesteps != "all":
            objective = objective_of(part_module(pl_module).backbone)
            self.term.timestep_weights = partial(timestep_weights, objective, kind=self._timesteps)
        super().on_fit_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._end is not None:
            progress = trainer.global_step / max(1, trainer.max_steps - 1)
            self.term.weight = self._start + (self._end - self._start) * min(1.0, progress)

    def bind(self, run: TrainingRun) -> None:
        """Gives the function the number of foreground parts."""
        self.set_num_parts(len(run.part_names) - 1)

    def set_num_parts(self, num_parts: int) -> None:
        self.term.loss = partial(self.term.loss, num_parts=num_parts)
