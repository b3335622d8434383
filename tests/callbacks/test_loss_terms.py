"""Attention losses come and go with fitting, act together, and pull attention where they say."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from stand_in import StandIn, fit, make_batch
from torch import Tensor

from partcraft_lit.callbacks.loss_terms import AddLossTerm, AttentionLoss, StepTerm
from partcraft_lit.core.types import StepOutput
from partcraft_lit.losses.attention import entropy_attention_loss

ENTROPY = functools.partial(entropy_attention_loss, num_parts=2)


def total_attention(maps: Tensor, part_ids: Tensor, label_map: Tensor) -> Tensor:
    return maps.sum(dim=(1, 2, 3))


def test_it_is_there_during_fitting_and_leaves_no_trace(tmp_path: Path) -> None:
    module = StandIn()
    fit(module, AttentionLoss(0.5, ENTROPY), folder=tmp_path, steps=2)
    assert module.history == ["add attn", "remove attn"]
    assert module.terms == {}
    assert module.requests == 0


def test_it_is_taken_back_when_training_breaks(tmp_path: Path) -> None:
    module = StandIn()
    callback = AttentionLoss(1.0, lambda *_: (_ for _ in ()).throw(RuntimeError("broken term")))
    with pytest.raises(RuntimeError, match="broken term"):
        fit(module, callback, folder=tmp_path)
    assert module.terms == {}
    assert module.requests == 0


def test_it_can_be_used_for_a_second_fit(tmp_path: Path) -> None:
    module, callback = StandIn(), AttentionLoss(0.5, ENTROPY)
    fit(module, callback, folder=tmp_path, steps=1)
    fit(module, callback, folder=tmp_path, steps=1)
    assert module.history == ["add attn", "remove attn"] * 2


def test_several_act_at_once(tmp_path: Path) -> None:
    module = StandIn()
    both = AttentionLoss(0.5, ENTROPY), AttentionLoss(2.0, total_attention, name="total")
    trainer = fit(module, *both, folder=tmp_path, steps=1)
    assert module.history == ["add attn", "add total", "remove attn", "remove total"]
    assert trainer.callback_metrics["train/loss_total"] == pytest.approx(2.0)  # two tokens with a softmax each


def test_it_moves_attention_onto_the_parts(tmp_path: Path) -> None:
    def inside(module: StandIn) -> float:
        label_map = make_batch().label_map[0]
        maps = module.attention(1)[0].detach()
        return float(sum(maps[token][label_map == token + 1].sum() for token in range(2)))

    module, without = StandIn(), StandIn()
    fit(module, AttentionLoss(50.0, ENTROPY), folder=tmp_path, steps=8)
    fit(without, folder=tmp_path, steps=8)
    assert inside(module) > inside(without) + 0.05
    assert inside(without) == pytest.approx(0.5, abs=1e-6)


def test_weight_zero_trains_as_if_it_were_not_there(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [AttentionLoss(0.0, ENTROPY)]):
        torch.manual_seed(0)
        module = StandIn()
        fit(module, *callbacks, folder=tmp_path, steps=3)
        weights.append(module.weight.detach())
    assert torch.equal(*weights)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(ValueError, match="loss term 'dice' must be finite and not negative"):
        AttentionLoss(weight, ENTROPY, name="dice")


def test_a_step_without_maps_is_an_error_that_says_why() -> None:
    batch = make_batch()
    with pytest.raises(RuntimeError, match="'attn' needs attention maps, and this step has none"):
        AttentionLoss(1.0, ENTROPY).term(StepOutput(batch, batch.latents, batch.noise))


def off_by(step: StepOutput) -> Tensor:
    return (step.model_pred - step.target).abs().flatten(1).mean(dim=1)


def test_a_term_that_reads_no_attention_asks_for_none(tmp_path: Path) -> None:
    module, requests = StandIn(), []
    term = StepTerm("off", 0.5, lambda step: requests.append(module.requests) or off_by(step))
    trainer = fit(module, AddLossTerm(term), folder=tmp_path, steps=1)
    assert module.history == ["add off", "remove off"] and set(requests) == {0}
    assert trainer.callback_metrics["train/loss_off"] > 0


def test_the_weight_moves_linearly_to_its_end(tmp_path: Path) -> None:
    module, weights = StandIn(), []

    class Recorder(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            weights.append(module.terms["attn"].weight)

    fit(module, AttentionLoss(0.4, ENTROPY, end=0.1), Recorder(), folder=tmp_path, steps=4)
    assert weights == pytest.approx([0.4, 0.3, 0.2, 0.1])


def test_values_are_weighted_by_timestep() -> None:
    batch = make_batch()
    maps = torch.rand(len(batch.latents), *batch.tokens.part_ids.shape[1:], 4, 4)
    step = StepOutput(batch, batch.latents, batch.noise, maps)
    plain, weighted = AttentionLoss(1.0, ENTROPY).term, AttentionLoss(1.0, ENTROPY).term
    weighted.timestep_weights = torch.Tensor.double
    assert torch.equal(weighted(step), plain(step) * batch.timesteps)
