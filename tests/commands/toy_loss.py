"""A loss term of somebody else: a function of the step."""

from __future__ import annotations

from torch import Tensor

from partcraft_lit.core.types import StepOutput


def distance(step: StepOutput, power: float = 1.0) -> Tensor:
    """(B,) mean distance of prediction and target."""
    return (step.model_pred - step.target).abs().pow(power).flatten(1).mean(dim=1)
