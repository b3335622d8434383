from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from torch.testing import assert_close

from partcraft_lit.losses.diffusion import (
    add_noise,
    diffusion_loss,
    diffusion_target,
    min_snr_weight,
    signal_and_noise,
    signal_to_noise_ratio,
)

TIMESTEPS = torch.tensor([0, 250, 999])


@pytest.fixture(scope="module")
def scheduler():
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


@pytest.fixture(scope="module")
def latents_and_noise():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 4, 5, 6, generator=generator), torch.randn(3, 4, 5, 6, generator=generator)


def test_targets_and_noising_are_those_of_diffusers(scheduler, latents_and_noise):
    latents, noise = latents_and_noise
    table = scheduler.alphas_cumprod
    noisy = add_noise(latents, noise, TIMESTEPS, table)
    assert_close(noisy, scheduler.add_noise(latents, noise, TIMESTEPS))
    assert torch.equal(diffusion_target(latents, noise, TIMESTEPS, table, "epsilon"), noise)
    assert torch.equal(diffusion_target(latents, noise, TIMESTEPS, table, "sample"), latents)
    velocity = diffusion_target(latents, noise, TIMESTEPS, table, "v_prediction")
    assert_close(velocity, scheduler.get_velocity(latents, noise, TIMESTEPS))
    assert_close(signal_to_noise_ratio(table, TIMESTEPS), compute_snr(scheduler, TIMESTEPS))


def test_velocity_and_noisy_latents_give_back_latents_and_noise(scheduler, latents_and_noise):
    latents, noise = latents_and_noise
    table = scheduler.alphas_cumprod
    noisy = add_noise(latents, noise, TIMESTEPS, table)
    velocity = diffusion_target(latents, noise, TIMESTEPS, table, "v_prediction")
    alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in signal_and_noise(table, TIMESTEPS))
    assert_close(alpha * noisy - sigma * velocity, latents, rtol=0, atol=1e-5)
    assert_close(sigma * noisy + alpha * velocity, noise, rtol=0, atol=1e-5)


def test_targets_are_float32_and_noisy_latents_keep_their_precision(scheduler, latents_and_noise):
    latents, noise = (tensor.bfloat16() for tensor in latents_and_noise)
    table = scheduler.alphas_cumprod
    assert add_noise(latents, noise, TIMESTEPS, table).dtype == torch.bfloat16
    for kind in ("epsilon", "v_prediction", "sample"):
        assert diffusion_target(latents, noise, TIMESTEPS, table, kind).dtype == torch.float32


@pytest.mark.parametrize(
    ("prediction_type", "expected"),
    [  # by hand, gamma 5: SNR 0, 1, 5, 20, infinite
        ("epsilon", [1, 1, 1, 0.25, 0]),
        ("v_prediction", [0, 0.5, 5 / 6, 5 / 21, 0]),
        ("sample", [0, 1, 5, 5, 5]),
    ],
)
def test_min_snr_weights_by_hand(prediction_type, expected):
    snr = torch.tensor([0.0, 1.0, 5.0, 20.0, torch.inf])
    assert_close(min_snr_weight(snr, 5.0, prediction_type), torch.tensor(expected, dtype=torch.float32))
    assert_close(min_snr_weight(snr, None, prediction_type), torch.ones(5))


def test_the_released_weights_by_hand(scheduler):
    """PartCraft's trainer adds 1 to the SNR of v-prediction before the minimum: gamma 5, SNR 0, 1, 4, 20, infinite."""
    snr = torch.tensor([0.0, 1.0, 4.0, 20.0, torch.inf])
    released = min_snr_weight(snr, 5.0, "v_prediction", "released")
    assert_close(released, torch.tensor([1, 1, 1, 5 / 21, 0]))
    assert_close(min_snr_weight(snr, 5.0, "epsilon", "released"), min_snr_weight(snr, 5.0, "epsilon"))
    snr = compute_snr(scheduler, torch.arange(1000))
    published, released = (min_snr_weight(snr, 5.0, "v_prediction", form) for form in ("published", "released"))
    assert [round(float(weight.mean()), 2) for weight in (published, released)] == [0.29, 0.91]
    assert [round(float(weight[999]), 3) for weight in (published, released)] == [0.005, 1.0]
    with pytest.raises(ValueError, match=r"form must be one of .*got 'paper'"):
        min_snr_weight(snr, 5.0, "epsilon", "paper")


def test_weighted_losses_agree_whatever_is_predicted(scheduler, latents_and_noise):
    """The law behind the weights: one error of the clean latents costs the same in every parametrisation."""
    latents, noise = latents_and_noise
    table = scheduler.alphas_cumprod
    timesteps = torch.tensor([100, 400, 800])
    alpha, sigma = (scale.view(-1, 1, 1, 1) for scale in signal_and_noise(table, timesteps))
    noisy = add_noise(latents, noise, timesteps, table)
    wrong = latents + 0.3
    said = {
        "sample": wrong,
        "epsilon": (noisy - alpha * wrong) / sigma,
        "v_prediction": (alpha * noisy - wrong) / sigma,
    }
    snr = signal_to_noise_ratio(table, timesteps)
    losses = {
        kind: diffusion_loss(
            prediction, diffusion_target(latents, noise, timesteps, table, kind), min_snr_weight(snr, 5.0, kind)
        )
        for kind, prediction in said.items()
    }
    assert_close(losses["sample"], 0.09 * snr.clamp_max(5.0))
    assert_close(losses["epsilon"], losses["sample"], rtol=1e-3, atol=0)
    assert_close(losses["v_prediction"], losses["sample"], rtol=1e-3, atol=0)


def test_loss_by_hand():
    prediction = torch.tensor([[1.0, 3.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    target = torch.tensor([[0.0, 1.0], [0.0, 0.0]]).view(2, 1, 1, 2)
    assert_close(diffusion_loss(prediction, target), torch.tensor([2.5, 0.0]))
    assert_close(diffusion_loss(prediction, target, torch.tensor([2.0, 3.0])), torch.tensor([5.0, 0.0]))


def test_loss_is_float32_also_from_halves_under_autocast():
    prediction, target = torch.full((2, 1, 1, 1), 300.0).half(), torch.zeros(2, 1, 1, 1).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = diffusion_loss(prediction, target)
    assert_close(loss, torch.full((2,), 90000.0))  # infinite in half precision


def test_gradient_is_that_of_the_mean_square():
    prediction = torch.randn(2, 1, 2, 2, dtype=torch.float32, requires_grad=True)
    target = torch.zeros(2, 1, 2, 2)
    diffusion_loss(prediction, target, torch.tensor([1.0, 3.0])).sum().backward()
    assert_close(prediction.grad, prediction.detach() * 2 / 4 * torch.tensor([1.0, 3.0]).view(2, 1, 1, 1))


def test_errors(latents_and_noise):
    latents, noise = latents_and_noise
    with pytest.raises(ValueError, match=r"prediction_type must be one of .*got 'noise'"):
        diffusion_target(latents, noise, TIMESTEPS, torch.ones(1000), "noise")
    with pytest.raises(ValueError, match="prediction_type must be one of"):
        min_snr_weight(torch.ones(1), 5.0, "x0")
    with pytest.raises(ValueError, match="gamma must be above 0, or None"):
        min_snr_weight(torch.ones(1), 0.0)
    with pytest.raises(ValueError, match="noise must have the shape of latents"):
        add_noise(latents, noise[:1], TIMESTEPS, torch.ones(1000))
    with pytest.raises(ValueError, match="target must have the shape of model_pred"):
        diffusion_loss(latents, noise[:, :1])
    with pytest.raises(ValueError, match=r"weight must hold one number per sample, \(3,\), got \(1,\)"):
        diffusion_loss(latents, noise, torch.ones(1))
