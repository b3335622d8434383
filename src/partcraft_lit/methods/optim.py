"""Settings of the optimizer: learning rates, schedule, phases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import Count, NonNegative, Positive, Rate, Share


@dataclass(frozen=True)
class OptimSettings:
    """AdamW with a learning rate per parameter group.

    Attributes:
        lora_lr: of the adapter.
        mapper_lr: of the part tokens.
        unet_lr: of the UNet's own weights.
        text_encoder_lr: of the text encoder.
        weight_decay, betas, eps: AdamW's.
        warmup_steps: of a linear warm-up from 0.
        cooldown_steps: of a linear decay to 0 at the end.
        total_steps: of the run, for the decay; the trainer's estimate would start its loader.
        phases: groups that train by step; empty for all groups at all steps. The last phase has no end.
    """

    lora_lr: NonNegative
    mapper_lr: NonNegative
    unet_lr: NonNegative
    text_encoder_lr: NonNegative
    weight_decay: NonNegative
    betas: tuple[Share, Share]
    eps: Rate
    warmup_steps: Count
    cooldown_steps: Count
    total_steps: Positive
    phases: tuple[PhaseSettings, ...]

    def rate(self, group: str) -> float:
        """Learning rate of a group, before any schedule."""
        return float(getattr(self, f"{group}_lr"))

    def factor(self, group: str, step: int) -> float:
        """Multiplier of the learning rate at a step: warm-up, decay, and 0 while the group is frozen."""
        rise = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        left = max(0, self.total_steps - step)
        fall = min(1.0, left / self.cooldown_steps) if self.cooldown_steps else 1.0
        return rise * fall if self.trains(group, step) else 0.0

    @property
    def is_constant(self) -> bool:
        """Whether learning rates are constant over the run."""
        return not (self.warmup_steps or self.cooldown_steps or self.phases)

    def trains(self, group: str, step: int) -> bool:
        """Whether a group trains at a step."""
        if not self.phases:
            return True
        end = 0
        for phase in self.phases[:-1]:
            end = step + 1 if phase.steps is None else end + phase.steps
            if step < end:
                return group in phase.groups
        return group in self.phases[-1].groups


@dataclass(frozen=True)
class PhaseSettings:
    """A phase of training.

    Attributes:
        steps: optimizer steps; None for the rest of the run.
        groups: that train; others are frozen with their optimizer state.
    """

    steps: Positive | None
    groups: tuple[Literal["mapper", "lora", "unet", "text_encoder"], ...]
