"""The predictor reads parts and codes, and passes its gradients on without changing."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.callbacks.loss_terms import AddLossTerm
from partcraft_lit.callbacks.part_prediction import PartPredictionTerm, prompted_codes
from partcraft_lit.core.types import ABSENT, Flow, TokenizedPrompts
from partcraft_lit.losses.diffusion import add_noise, diffusion_target, predicted_latents
from partcraft_lit.losses.objective import FlowObjective, objective_of
from partcraft_lit.methods.latent_predictor import LatentPartPredictor, fit_latent_predictor

STEPS = 60
CODES = 3


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two parts, the upper and the lower half; their codes are the sign pattern of the latents there."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.ones(8, 8, 8, dtype=torch.uint8)
    labels[:, 4:] = 2
    codes = torch.randint(CODES, (8, 3), generator=generator)
    codes[:, 0] = ABSENT
    patterns = torch.eye(4)[:, None, :].expand(4, 2, 4)
    latents = 0.3 * torch.randn(8, 4, 8, 8, generator=generator)
    for sample in range(8):
        for part, rows in ((1, slice(0, 4)), (2, slice(4, 8))):
            sign = 1.0 if part == 1 else -1.0
            latents[sample, :, rows] += sign * 2 * patterns[int(codes[sample, part]), 0][:, None, None]
    return latents, labels, codes


@pytest.fixture(scope="module")
def predictor() -> LatentPartPredictor:
    predictor = LatentPartPredictor(channels=4, num_parts=2, num_codes=CODES)
    fit_latent_predictor(predictor, (batch(n) for n in range(STEPS)), STEPS, seed=0)
    return predictor


def test_it_learns_to_read_and_is_frozen(predictor) -> None:
    latents, labels, codes = batch(1000)
    parts, of_codes = predictor(latents, labels.long())
    assert (parts.argmax(dim=1) == labels).float().mean() > 0.95
    assert (of_codes.argmax(dim=2)[:, 1:] == codes[:, 1:]).float().mean() > 0.95
    assert not any(parameter.requires_grad for parameter in predictor.parameters())


def test_equal_seeds_give_equal_predictors(predictor) -> None:
    again = LatentPartPredictor(channels=4, num_parts=2, num_codes=CODES)
    fit_latent_predictor(again, (batch(n) for n in range(STEPS)), STEPS, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), predictor.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_predicted_latents_invert_the_target(kind) -> None:
    alphas = torch.linspace(0.99, 0.1, 10)
    latents, noise, timesteps = torch.randn(4, 2, 3, 3), torch.randn(4, 2, 3, 3), torch.tensor([0, 3, 6, 9])
    target = diffusion_target(latents, noise, timesteps, alphas, kind)
    noisy = add_noise(latents, noise, timesteps, alphas)
    assert_close(predicted_latents(noisy, target, timesteps, alphas, kind), latents, atol=1e-5, rtol=1e-5)


def test_predicted_latents_of_flow_matching_and_shifted_timesteps() -> None:
    objective = FlowObjective(Flow(shift=2.0))
    latents, noise, timesteps = torch.randn(3, 2, 3, 3), torch.randn(3, 2, 3, 3), torch.tensor([0.0, 400.0, 1000.0])
    noisy = objective.add_noise(latents, noise, timesteps)
    target = objective.target(latents, noise, timesteps)
    assert_close(objective.predicted_latents(noisy, target, timesteps), latents, atol=1e-5, rtol=1e-5)
    assert objective.shifted(1.5).flow.shift == 3.0


def test_codes_of_the_caption() -> None:
    nothing = torch.full((2, 3), ABSENT)
    tokens = TokenizedPrompts((), nothing, torch.tensor([[2, 0, -1], [1, 1, 2]]), torch.tensor([[5, 1, -1], [3, 4, 0]]))
    assert prompted_codes(tokens, 2).tolist() == [[1, ABSENT, 5], [ABSENT, 4, 0]]
    empty = TokenizedPrompts((), nothing[:, :0], nothing[:, :0], nothing[:, :0])
    assert prompted_codes(empty, 2).tolist() == nothing.tolist()


def test_gradients_reach_tokens_and_adapter_and_not_the_predictor(tools, fresh_backbone) -> None:
    module = tools.build(fresh_backbone, "method=partcraft")
    own = LatentPartPredictor(fresh_backbone.latent_channels, 2, 3).requires_grad_(False)
    before = [parameter.clone() for parameter in own.parameters()]
    term = PartPredictionTerm(0.5, own, objective_of(fresh_backbone))
    step = module.forward_step(tools.batch_of(module))
    values = term(step)
    assert values.shape == (2,) and bool((values > 0).all())
    values.sum().backward()
    for name, parameters in module.trainable_groups().items():
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters), name
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), before, strict=True))
    losses = tools.fit(module, tools.batch_of(module), 1, AddLossTerm(term))
    assert losses[0] > 0 and not any("predictor" in name for name in module.state_dict())
