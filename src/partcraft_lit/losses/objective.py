"""What a denoiser was trained for: diffusion or flow matching."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Backbone, Flow
from partcraft_lit.losses.diffusion import (
    add_noise,
    diffusion_target,
    min_snr_weight,
    predicted_latents,
    signal_and_noise,
    signal_to_noise_ratio,
)
from partcraft_lit.losses.flow import flow_sigmas, flow_target, mix_noise
from partcraft_lit.losses.settings import SnrForm


class Objective(Protocol):
    """Noise, targets and weights of a denoiser; picklable, since loader workers draw timesteps."""

    @property
    def probe_timestep(self) -> float:
        """The timestep at which attention is shown: noisy enough to be read from the text."""
        ...

    def draw_timestep(self, generator: torch.Generator) -> float:
        """One timestep as in the model's own training: an int for diffusion."""
        ...

    def shifted(self, shift: float) -> Objective:
        """The same with more noisy timesteps for a ``shift`` above 1, fewer below: u -> s u / (1 + (s - 1) u)."""
        ...

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) factors of latents and of noise in noisy latents."""
        ...

    def even_timesteps(self) -> Tensor:
        """(n,) timesteps, evenly over all noise levels."""
        ...

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(B, C, h, w) noisy latents."""
        ...

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """(B, C, h, w) what the denoiser should predict, float32."""
        ...

    def predicted_latents(self, noisy_latents: Tensor, model_pred: Tensor, timesteps: Tensor) -> Tensor:
        """(B, C, h, w) float32 clean latents that a prediction stands for."""
        ...

    def weights(self, timesteps: Tensor, gamma: float | None, form: SnrForm) -> Tensor:
        """(B,) weights of the loss; ones without a ``gamma``.

        Raises:
            UserError: for a gamma where min-SNR weights are not defined.
        """
        ...


def objective_of(backbone: Backbone) -> Objective:
    """The objective of a backbone's denoiser."""
    if backbone.flow is not None:
        return FlowObjective(backbone.flow)
    scheduler = backbone.noise_scheduler
    return DiffusionObjective(scheduler.alphas_cumprod, scheduler.config.prediction_type)


@dataclass(frozen=True)
class DiffusionObjective:
    """Epsilon, v-prediction or sample; all timesteps alike.

    Attributes:
        alphas_cumprod: (timesteps,) of the scheduler.
        prediction_type: as in ``diffusion_target``.
        shift: of the timesteps, see ``Objective.shifted``.
    """

    alphas_cumprod: Tensor
    prediction_type: str
    shift: float = 1.0

    @property
    def probe_timestep(self) -> int:
        """Two fifths into the noise schedule."""
        return len(self.alphas_cumprod) * 2 // 5

    def draw_timestep(self, generator: torch.Generator) -> int:
        count = len(self.alphas_cumprod)
        if self.shift == 1.0:
            return int(torch.randint(count, (), generator=generator))
        uniform = float(torch.rand((), generator=generator, dtype=torch.float64))
        return min(count - 1, int(count * self.shift * uniform / (1.0 + (self.shift - 1.0) * uniform)))

    def shifted(self, shift: float) -> DiffusionObjective:
        return replace(self, shift=self.shift * shift)

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        return signal_and_noise(self.alphas_cumprod, timesteps)

    def even_timesteps(self) -> Tensor:
        return torch.arange(len(self.alphas_cumprod))

    def predicted_latents(self, noisy_latents: Tensor, model_pred: Tensor, timesteps: Tensor) -> Tensor:
        return predicted_latents(noisy_latents, model_pred, timesteps, self.alphas_cumprod, self.prediction_type)

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return add_noise(latents, noise, timesteps, self.alphas_cumprod)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return diffusion_target(latents, noise, timesteps, self.alphas_cumprod, self.prediction_type)

    def weights(self, timesteps: Tensor, gamma: float | None, form: SnrForm) -> Tensor:
        snr = signal_to_noise_ratio(self.alphas_cumprod, timesteps)
        return min_snr_weight(snr, gamma, self.prediction_type, form)


@dataclass(frozen=True)
class FlowObjective:
    """Flow matching; the density of the timesteps is the weighting of the loss."""

    flow: Flow

    @property
    def probe_timestep(self) -> float:
        """As much noise as latents, which is about two fifths into the noise schedule of Stable Diffusion."""
        return self.flow.num_train_timesteps / 2

    def draw_timestep(self, generator: torch.Generator) -> float:
        return float(flow_sigmas(self.flow, (), generator) * self.flow.num_train_timesteps)

    def shifted(self, shift: float) -> FlowObjective:
        return FlowObjective(replace(self.flow, shift=self.flow.shift * shift))

    def signal_and_noise(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        sigmas = timesteps.float() / self.flow.num_train_timesteps
        return 1.0 - sigmas, sigmas

    def even_timesteps(self) -> Tensor:
        return torch.linspace(0.0, self.flow.num_train_timesteps, self.flow.num_train_timesteps + 1)

    def predicted_latents(self, noisy_latents: Tensor, model_pred: Tensor, timesteps: Tensor) -> Tensor:
        _, sigma = self.signal_and_noise(timesteps)
        return noisy_latents.float() - sigma.view(-1, 1, 1, 1) * model_pred.float()

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return mix_noise(latents, noise, timesteps / self.flow.num_train_timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        return flow_target(latents, noise)

    def weights(self, timesteps: Tensor, gamma: float | None, form: SnrForm) -> Tensor:
        refuse_snr_weights(gamma)
        return torch.ones_like(timesteps, dtype=torch.float32)


def refuse_snr_weights(gamma: float | None) -> None:
    """Flow matching has no min-SNR weights.

    Raises:
        UserError: if there is a gamma.
    """
    if gamma is not None:
        raise UserError(
            f"loss.snr_gamma={gamma}: min-SNR weights are those of diffusion models, and this backbone was trained by "
            "flow matching, whose weighting is the density of its timesteps: set loss.snr_gamma=null."
        )
