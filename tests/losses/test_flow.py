from __future__ import annotations

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Flow
from partcraft_lit.losses.flow import flow_sigmas, flow_target, mix_noise
from partcraft_lit.losses.objective import FlowObjective, objective_of


def draw(flow: Flow, count: int = 20_000) -> torch.Tensor:
    return flow_sigmas(flow, (count,), torch.Generator().manual_seed(0))


def test_noisy_latents_and_target_by_hand():
    latents, noise = torch.full((2, 1, 1, 1), 4.0), torch.full((2, 1, 1, 1), 2.0)
    objective = FlowObjective(Flow())
    assert objective.add_noise(latents, noise, torch.tensor([250.0, 1000.0])).flatten().tolist() == [3.5, 2.0]
    assert objective.target(latents, noise, torch.tensor([250.0, 1000.0])).flatten().tolist() == [-2.0, -2.0]


def test_the_target_is_the_velocity_of_the_path():
    """d/dsigma of the noisy latents."""
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    sigmas = torch.tensor([0.1, 0.5, 0.9])
    step = 1e-3
    difference = (mix_noise(latents, noise, sigmas + step) - mix_noise(latents, noise, sigmas - step)) / (2 * step)
    assert_close(difference, flow_target(latents, noise).double(), atol=1e-3, rtol=1e-3)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="noise must have the shape of latents"):
        flow_target(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 3))


def test_densities():
    """Quartiles of the logit-normal: sigmoid(+-0.6745)."""
    uniform, normal = draw(Flow()), draw(Flow(density="logit_normal"))
    quartiles = torch.tensor([0.25, 0.5, 0.75])
    assert_close(uniform.quantile(quartiles), quartiles, atol=0.01, rtol=0)
    assert_close(normal.quantile(quartiles), torch.tensor([-0.6745, 0.0, 0.6745]).sigmoid(), atol=0.01, rtol=0)
    moved = draw(Flow(density="logit_normal", mean=1.0, std=0.5))
    assert_close(moved.quantile(quartiles), torch.tensor([0.6628, 1.0, 1.3372]).sigmoid(), atol=0.01, rtol=0)


def test_the_shift_moves_towards_noise():
    """By hand: a shift of 3 takes 1/2 to 3/4."""
    plain, shifted = draw(Flow()), draw(Flow(shift=3.0))
    assert_close(shifted, 3 * plain / (1 + 2 * plain))
    assert_close(shifted.median(), torch.tensor(0.75), atol=0.01, rtol=0)


def test_a_share_is_uniform():
    """Nothing below 0.1 but what is uniform: a tenth of a tenth; the shifted logit-normal has hardly any."""
    mixed, alone = draw(Flow("logit_normal", shift=3.0, uniform_share=0.5)), draw(Flow("logit_normal", shift=3.0))
    assert (alone < 0.1).float().mean() < 0.002
    assert (mixed < 0.1).float().mean() == pytest.approx(0.05, abs=0.01)


def test_timesteps_are_drawn_per_sample_and_travel_to_workers():
    objective = pickle.loads(pickle.dumps(FlowObjective(Flow("logit_normal"))))
    first, again = (objective.draw_timestep(torch.Generator().manual_seed(7)) for _ in range(2))
    assert first == again and 0 < first < 1000 and isinstance(first, float)


def test_min_snr_weights_are_refused():
    objective = objective_of(SimpleNamespace(flow=Flow()))
    assert objective.weights(torch.tensor([1.0, 2.0]), None, "published").tolist() == [1.0, 1.0]
    with pytest.raises(UserError, match=r"loss\.snr_gamma=5\.0: min-SNR weights are those of diffusion models"):
        objective.weights(torch.tensor([1.0]), 5.0, "published")
