"""Timesteps, noisy latents and targets of flow matching on straight paths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from partcraft_lit.core.types import Flow


def flow_sigmas(flow: Flow, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Shares of noise, float32 from 0 to 1, drawn as in the model's own training.

    Source: Esser et al. (arXiv 2403.03206), section 3.1 for the logit-normal density and eq. 23 for the shift.
    """
    if flow.density == "logit_normal":
        normal = torch.randn(tuple(shape), generator=generator)
        sigmas = (flow.mean + flow.std * normal).sigmoid()
    else:
        sigmas = torch.rand(tuple(shape), generator=generator)
    sigmas = flow.shift * sigmas / (1.0 + (flow.shift - 1.0) * sigmas)
    if not flow.uniform_share:
        return sigmas
    uniform, chosen = (torch.rand(tuple(shape), generator=generator) for _ in range(2))
    return torch.where(chosen < flow.uniform_share, uniform, sigmas)


def mix_noise(latents: Tensor, noise: Tensor, sigmas: Tensor) -> Tensor:
    """(1 - sigma) * latents + sigma * noise: (B, C, h, w) in the precision of ``latents``; sigmas are (B,)."""
    share = sigmas.float().view(-1, 1, 1, 1)
    return ((1.0 - share) * latents.float() + share * noise.float()).to(latents.dtype)


def flow_target(latents: Tensor, noise: Tensor) -> Tensor:
    """The velocity noise - latents, (B, C, h, w) float32.

    Raises:
        ValueError: if the shapes differ.
    """
    if latents.shape != noise.shape:
        raise ValueError(f"noise must have the shape of latents, {tuple(latents.shape)}, got {tuple(noise.shape)}.")
    return noise.float() - latents.float()
