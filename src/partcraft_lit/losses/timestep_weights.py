"""Weights of loss terms by the noise level."""

from __future__ import annotations

from torch import Tensor

from partcraft_lit.losses.objective import Objective
from partcraft_lit.losses.settings import TimestepWeight


def timestep_weights(objective: Objective, timesteps: Tensor, kind: TimestepWeight) -> Tensor:
    """(B,) float32 weights, of mean 1 over all noise levels.

    Args:
        objective: of the denoiser.
        timesteps: (B,).
        kind: "all" for ones; "signal" in proportion to the factor of the latents, "noise" to that of the noise.
    """
    if kind == "all":
        return timesteps.new_ones(timesteps.shape).float()
    which = 0 if kind == "signal" else 1
    everywhere = objective.signal_and_noise(objective.even_timesteps().to(timesteps.device))[which]
    return objective.signal_and_noise(timesteps)[which] / everywhere.mean()
