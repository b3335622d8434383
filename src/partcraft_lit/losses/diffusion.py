"""Diffusion targets, SNR weights and the MSE loss.

A noisy latent is ``alpha * latents + sigma * noise`` with ``alpha**2 + sigma**2 = 1``; alpha**2 is the scheduler's
``alphas_cumprod``. SNR is ``(alpha / sigma)**2``.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from partcraft_lit.losses.settings import RegionMean, SnrForm

#: diffusers' names.
PredictionType = Literal["epsilon", "v_prediction", "sample"]


def signal_and_noise(alphas_cumprod: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
    """Alpha and sigma at each timestep, (B,) each; the table may be on another device."""
    alphas_cumprod = alphas_cumprod.to(timesteps.device).float()
    chosen = alphas_cumprod[timesteps]
    return chosen.sqrt(), (1.0 - chosen).sqrt()


def signal_to_noise_ratio(alphas_cumprod: Tensor, timesteps: Tensor) -> Tensor:
    """(B,) SNR; infinite at alpha = 1."""
    alpha, sigma = signal_and_noise(alphas_cumprod, timesteps)
    return (alpha / sigma).square()


def add_noise(latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor) -> Tensor:
    """(B, C, h, w) noisy latents, in the precision of ``latents``."""
    _check_shapes(latents=latents, noise=noise)
    alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in signal_and_noise(alphas_cumprod, timesteps))
    return (alpha * latents.float() + sigma * noise.float()).to(latents.dtype)


def diffusion_target(
    latents: Tensor, noise: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str = "epsilon"
) -> Tensor:
    """Regression target of the UNet.

    Args:
        latents: (B, C, h, w) clean latents.
        noise: same shape.
        timesteps: (B,) integers.
        alphas_cumprod: (timesteps,) of the scheduler.
        prediction_type: "epsilon" (the noise), "v_prediction" (alpha * noise - sigma * latents) or "sample" (the
            latents).

    Returns:
        (B, C, h, w) float32.

    Raises:
        ValueError: for another prediction type, or if the shapes differ.

    Source: Salimans and Ho (arXiv 2202.00512) for v-prediction. Differs: no.
    """
    _check_prediction_type(prediction_type)
    _check_shapes(latents=latents, noise=noise)
    if prediction_type == "epsilon":
        return noise.float()
    if prediction_type == "sample":
        return latents.float()
    alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in signal_and_noise(alphas_cumprod, timesteps))
    return alpha * noise.float() - sigma * latents.float()


def predicted_latents(
    noisy_latents: Tensor, model_pred: Tensor, timesteps: Tensor, alphas_cumprod: Tensor, prediction_type: str
) -> Tensor:
    """(B, C, h, w) float32 clean latents that a prediction stands for, the inverse of ``diffusion_target``.

    Raises:
        ValueError: for an unknown prediction type, or if the shapes differ.
    """
    _check_prediction_type(prediction_type)
    _check_shapes(noisy_latents=noisy_latents, model_pred=model_pred)
    if prediction_type == "sample":
        return model_pred.float()
    alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in signal_and_noise(alphas_cumprod, timesteps))
    if prediction_type == "epsilon":
        return (noisy_latents.float() - sigma * model_pred.float()) / alpha.clamp_min(1e-4)
    return alpha * noisy_latents.float() - sigma * model_pred.float()


def min_snr_weight(
    snr: Tensor, gamma: float | None, prediction_type: str = "epsilon", form: SnrForm = "published"
) -> Tensor:
    """Min-SNR loss weights: the squared error of the clean latents is weighted by min(SNR, gamma).

    Args:
        snr: (B,) signal-to-noise ratios, 0 to infinity.
        gamma: 5 in the paper; None for the unweighted loss (all ones).
        prediction_type: as in ``diffusion_target``.
        form: "released" adds 1 to the SNR of v-prediction before the minimum too.

    Returns:
        (B,): min(SNR, gamma) / SNR for epsilon, / (SNR + 1) for v-prediction, / 1 for the sample; finite at both ends.
        "released" for v-prediction: min(SNR + 1, gamma) / (SNR + 1), which is 1 for pure noise and not 0.

    Raises:
        ValueError: for another prediction type or form, or a gamma that is not above 0.

    Source: Hang et al. (arXiv 2303.09556), eq. 8; the appendix for the other targets. Differs: no. "released" is the
    training script of the PartCraft release, after diffusers' examples of 2023.
    """
    _check_prediction_type(prediction_type)
    if form not in get_args(SnrForm):
        raise ValueError(f"form must be one of {get_args(SnrForm)}, got {form!r}.")
    if gamma is None:
        return torch.ones_like(snr)
    if not gamma > 0:
        raise ValueError(f"gamma must be above 0, or None for the plain loss, got {gamma}.")
    if prediction_type == "sample":
        return snr.clamp_max(gamma)
    if prediction_type == "v_prediction" and form == "released":
        return gamma / (snr + 1.0).clamp_min(gamma)
    if prediction_type == "v_prediction":
        return snr.clamp_max(gamma) / (snr + 1.0)
    return gamma / snr.clamp_min(gamma)  # min(snr, gamma) / snr, without 0 / 0 at the noisy end


def diffusion_loss(
    model_pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    region: Tensor | None = None,
    region_mean: RegionMean = "latents",
) -> Tensor:
    """Weighted MSE of each sample, masked where a region is given.

    Args:
        model_pred: (B, C, h, w) any precision.
        target: same shape.
        weight: (B,) or None for ones.
        region: (B, h, w) soft loss mask, 0 to 1; None for ones.
        region_mean: "latents" averages over all latents, so that a small region has a small loss (Break-a-Scene).
            "region" sums over channels and divides by the sum of the mask, which has one channel: C times the mean
            over the region, as Custom Diffusion and DisenDiff are released.

    Returns:
        (B,) float32; 0 for an empty region.

    Raises:
        ValueError: if the shapes differ, or for an unknown ``region_mean``.
    """
    _check_shapes(model_pred=model_pred, target=target)
    with torch.autocast(model_pred.device.type, enabled=False):
        squares = (model_pred.float() - target.float()).square()
        error = _masked_mean(squares, region, region_mean)
    if weight is None:
        return error
    if weight.shape != error.shape:
        raise ValueError(f"weight must hold one number per sample, {tuple(error.shape)}, got {tuple(weight.shape)}.")
    return error * weight.float()


def _masked_mean(squares: Tensor, region: Tensor | None, region_mean: str) -> Tensor:
    """(B, C, h, w) -> (B,)."""
    if region is not None and region.shape != squares[:, 0].shape:
        raise ValueError(f"region must be {tuple(squares[:, 0].shape)}, (B, h, w), got {tuple(region.shape)}.")
    if region_mean not in get_args(RegionMean):
        raise ValueError(f"region_mean must be one of {get_args(RegionMean)}, got {region_mean!r}.")
    if region_mean == "latents":
        if region is None:
            return squares.flatten(1).mean(dim=1)
        return (squares.mean(dim=1) * region.float()).mean(dim=(1, 2))
    mask = torch.ones_like(squares[:, 0]) if region is None else region.float()
    return (squares.sum(dim=1) * mask).sum(dim=(1, 2)) / mask.sum(dim=(1, 2)).clamp_min(1e-6)


def _check_prediction_type(prediction_type: str) -> None:
    if prediction_type not in get_args(PredictionType):
        raise ValueError(f"prediction_type must be one of {get_args(PredictionType)}, got {prediction_type!r}.")


def _check_shapes(**tensors: Tensor) -> None:
    (first, a), (second, b) = tensors.items()
    if a.shape != b.shape:
        raise ValueError(f"{second} must have the shape of {first}, {tuple(a.shape)}, got {tuple(b.shape)}.")
