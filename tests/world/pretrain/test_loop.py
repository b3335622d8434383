"""The training loop: its schedule, and that a resumed run is the same run."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.world.pretrain.loop import LoopSettings, learning_rate, train_loop
from pretraining import loop_settings

SETTINGS = loop_settings(steps=120, batch_size=4, lr=0.01, warmup=10, save_every_s=-1.0)  # saves at every chance


class Killed(Exception):
    """Stands for a killed process."""


def tiny_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1))


def task(model: nn.Module, killed_at: int | None = None) -> Callable[[int], tuple[Tensor, dict[str, float]]]:
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == killed_at:
            raise Killed
        inputs = torch.randn(4, 3, generator=torch_generator(0, "test", step))
        error = (model(inputs)[:, 0] - inputs.prod(dim=1)).square().mean()
        return error, {"error": float(error.detach())}

    return loss


def train(folder: Path, settings: LoopSettings = SETTINGS, killed_at: int | None = None) -> tuple[nn.Module, nn.Module]:
    model = tiny_model()
    folder.mkdir(exist_ok=True)
    averaged = train_loop(model, task(model, killed_at), settings, folder / "model.pt", lambda line: None)
    return model, averaged


def assert_same(first: nn.Module, second: nn.Module) -> None:
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("killed_at", [50, 73, 119])
def test_killed_and_resumed_equals_never_stopped(tmp_path, killed_at):
    model, averaged = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "parts", killed_at=killed_at)
    resumed_model, resumed_averaged = train(tmp_path / "parts")
    assert_same(model, resumed_model)
    assert_same(averaged, resumed_averaged)


def test_killed_and_resumed_with_muon(tmp_path):
    settings = dataclasses.replace(SETTINGS, optimizer="muon")
    model, _ = train(tmp_path / "whole", settings)
    with pytest.raises(Killed):
        train(tmp_path / "parts", settings, killed_at=73)
    assert_same(model, train(tmp_path / "parts", settings)[0])


def test_killed_before_the_first_checkpoint_it_starts_anew(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, killed_at=20)
    assert not (tmp_path / "model.pt").exists()
    assert_same(train(tmp_path)[0], train(tmp_path / "whole")[0])


def test_a_finished_run_takes_no_more_steps(tmp_path):
    first = train(tmp_path)
    second = train(tmp_path, killed_at=0)
    assert_same(first[0], second[0])
    assert_same(first[1], second[1])


def test_half_a_checkpoint_is_never_read(tmp_path):
    with pytest.raises(Killed):
        train(tmp_path, killed_at=73)
    (tmp_path / "model.tmp").write_bytes(b"half")  # what a process leaves that is killed while it writes
    assert_same(train(tmp_path)[0], train(tmp_path / "whole")[0])


def test_the_model_learns_and_the_average_follows(tmp_path):
    model, averaged = train(tmp_path, dataclasses.replace(SETTINGS, steps=400))
    inputs = torch.randn(500, 3, generator=torch.Generator().manual_seed(9))

    def error(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(inputs)[:, 0] - inputs.prod(dim=1)).square().mean())

    assert error(model) < error(tiny_model())
    assert error(averaged) < error(tiny_model())
    assert not averaged.training
    assert not any(parameter.requires_grad for parameter in averaged.parameters())


def test_average_by_hand(tmp_path):
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

    model = One()
    seen: list[float] = []

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        seen.append(float(model.weight.detach()))
        return (model.weight - 1).square().sum(), {}

    settings = loop_settings(steps=5, batch_size=1, lr=0.1, warmup=1, ema_decay=0.3)
    averaged = train_loop(model, loss, settings, tmp_path / "one.pt", lambda line: None)
    expected = 0.0
    for step, value in enumerate([*seen[1:], float(model.weight.detach())]):
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    assert float(averaged.weight) == pytest.approx(expected, rel=1e-5)


def test_curve_and_log(tmp_path):
    lines: list[str] = []
    model = tiny_model()
    train_loop(model, task(model), SETTINGS, tmp_path / "model.pt", lines.append)
    curve = [json.loads(line) for line in (tmp_path / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in curve] == [50, 100, 120]
    assert set(curve[0]) == {"step", "loss", "images_per_s", "error"}
    assert lines[0].startswith("step 50/120  loss ")
    train_loop(tiny_model(), task(model), SETTINGS, tmp_path / "model.pt", lines.append)
    assert lines[-1].startswith("goes on at step 120")


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    model = tiny_model()

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        return next(model.parameters()).sum() * float("nan"), {}

    with pytest.raises(FloatingPointError, match=r"loss is nan at step 50; lower lr \(now 0\.01\)"):
        train_loop(model, loss, SETTINGS, tmp_path / "model.pt", lambda line: None)


@pytest.mark.parametrize(
    "step, expected", [(0, 0.1), (4, 0.5), (9, 1.0), (50, 1.0), (80, 1.0), (90, 0.5), (95, 0.25), (99, 0.05)]
)
def test_learning_rate_by_hand(step, expected):
    settings = loop_settings(steps=100, batch_size=1, lr=2.0, warmup=10)
    assert learning_rate(step, settings) == pytest.approx(2 * expected)


def test_a_longer_run_has_the_learning_rate_of_a_shorter_one_until_that_falls():
    short, long = (loop_settings(steps=steps, batch_size=1, lr=1.0) for steps in (1000, 5000))
    assert all(learning_rate(step, short) == learning_rate(step, long) for step in range(801))
    assert learning_rate(0, loop_settings(steps=1, batch_size=1, lr=1.0, warmup=0)) == 1.0
