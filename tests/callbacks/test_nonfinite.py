"""Steps that are not finite change nothing, are named, and end the fit when they come in a row."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stand_in import StandIn, bound, fit
from torch import Tensor

from partcraft_lit.callbacks.checkpoint import Checkpoints, damage, newest_good
from partcraft_lit.callbacks.nonfinite import NonFiniteTraining, SkipNonFinite
from partcraft_lit.core.types import TrainingBatch


class Breaking(StandIn):
    """Has a loss, or a gradient alone, that is not finite at some batches; keeps its weights after every one."""

    def __init__(self, at: tuple[int, ...], factor: float = math.nan, gradient_alone: bool = False) -> None:
        super().__init__()
        self.at, self.factor, self.gradient_alone = at, factor, gradient_alone
        self.after: list[Tensor] = []

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if len(self.seen) - 1 not in self.at:
            return loss
        if self.gradient_alone:
            return loss + (self.weight * 0).sqrt().sum()  # 0, with a slope that is not finite
        return loss * self.factor

    def on_train_batch_end(self, *_: Any) -> None:
        self.after.append(self.weight.detach().clone())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)


def guarded(module: StandIn, folder: Path, *callbacks: Any, **more: Any) -> Any:
    return fit(module, bound(SkipNonFinite(), folder), *callbacks, folder=folder, **more)


@pytest.mark.parametrize("broken", [{"factor": math.nan}, {"factor": math.inf}, {"gradient_alone": True}])
def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path: Path, broken: dict[str, Any]) -> None:
    module = Breaking((1,), **broken)
    with pytest.warns(UserWarning, match="the step is skipped: step 1, 0.png at timestep 0, 1.png .*; latents float32"):
        trainer = guarded(module, tmp_path, steps=4)
    first, second, third, last = module.after
    assert torch.equal(first, second) and not torch.equal(second, third) and last.isfinite().all()
    assert trainer.global_step == 4
    (state,) = trainer.optimizers[0].state.values()
    assert float(state["step"]) == 3


def test_one_of_several_batches_of_a_step_is_enough(tmp_path: Path) -> None:
    module = Breaking((2,))
    with pytest.warns(UserWarning, match="the step is skipped: step 1"):
        guarded(module, tmp_path, steps=3, accumulate=2)
    assert torch.equal(module.after[1], module.after[3]) and module.after[-1].isfinite().all()


def test_three_in_a_row_end_the_fit_and_two_do_not(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the step is skipped"):
        guarded(Breaking((1, 2, 4, 5)), tmp_path, steps=7)
    with (
        pytest.warns(UserWarning, match="the step is skipped"),
        pytest.raises(NonFiniteTraining, match=r"3 steps in a row .* not finite: step 3, 0.png at timestep 0"),
    ):
        guarded(Breaking((1, 2, 3)), tmp_path, steps=7)


def test_a_finite_run_is_the_same_with_it(tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [bound(SkipNonFinite(), tmp_path)]):
        torch.manual_seed(0)
        module = Breaking(())
        fit(module, *callbacks, folder=tmp_path, steps=4)
        weights.append(module.weight.detach())
    assert torch.equal(*weights)


def test_weights_that_are_not_finite_are_never_a_checkpoint(tmp_path: Path) -> None:
    class Poisoned(StandIn):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            if self.global_step == 4:
                with torch.no_grad():
                    self.weight[0, 0, 0] = math.inf

    with pytest.warns(UserWarning, match=r"No checkpoint is written at step 5: the weights are not finite \(weight\)"):
        fit(Poisoned(), bound(Checkpoints(1), tmp_path), folder=tmp_path, steps=6)
    folder = tmp_path / "checkpoints"
    assert newest_good(folder) == folder / "step=000004.ckpt" and damage(folder / "last.ckpt") is None
    assert [path.name for path in sorted(folder.glob("step=*.ckpt"))] == ["step=000003.ckpt", "step=000004.ckpt"]


def test_a_whole_file_with_weights_that_are_not_finite_is_passed_over(tmp_path: Path) -> None:
    fit(StandIn(), bound(Checkpoints(1), tmp_path), folder=tmp_path, steps=2)
    folder = tmp_path / "checkpoints"
    content = torch.load(folder / "step=000002.ckpt", weights_only=True)
    content["state_dict"]["weight"][0] = math.nan
    torch.save(content, folder / "step=000009.ckpt")
    told: list[str] = []
    assert newest_good(folder, told.append) == folder / "step=000002.ckpt"
    assert "its weights are not finite (weight)" in told[0]
