"""A stop comes between two optimizer steps, with the checkpoint of the one that was reached."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from stand_in import StandIn, bound, fit

from partcraft_lit.callbacks import graceful_stop
from partcraft_lit.callbacks.checkpoint import Checkpoints, newest_good
from partcraft_lit.callbacks.graceful_stop import GracefulStop
from partcraft_lit.callbacks.metrics_log import MetricsLog, read_metrics
from partcraft_lit.core import stopping


class Stoppable(StandIn):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if self.trainer.should_stop else None


class Clock:
    """A second per batch; sends a signal at one of them."""

    def __init__(self, send_at: int = -1) -> None:
        self.now, self.send_at = 0.0, send_at

    def monotonic(self) -> float:
        return self.now


class Tick(Callback):
    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.now += 1
        if self.clock.now == self.clock.send_at:
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: Clock, seconds: float | None = None) -> Any:
    """Three batches to a step, at most four steps, a log line every two; trainer and the callback."""
    monkeypatch.setattr(graceful_stop, "time", clock)
    stop = GracefulStop(seconds)
    callbacks = [Tick(clock), bound(MetricsLog(), tmp_path), stop, bound(Checkpoints(every_n_steps=100), tmp_path)]
    with stopping.caught():
        trainer = fit(Stoppable(), *callbacks, folder=tmp_path, steps=4, accumulate=3)
    return trainer, stop


def saved(tmp_path: Path) -> str:
    checkpoint = newest_good(tmp_path / "checkpoints")
    return "" if checkpoint is None else checkpoint.name


def test_a_time_limit_within_a_step_lets_it_be_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, stop = stopped(tmp_path, monkeypatch, Clock(), seconds=4.0)
    assert stop.by_time and stop.signal is None
    assert trainer.global_step == 2 and saved(tmp_path) == "step=000002.ckpt"
    assert [step for step, _ in read_metrics(tmp_path / "metrics.jsonl")["train/loss"]] == [0, 1]


def test_a_limit_that_ends_with_the_last_step_has_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, _ = stopped(tmp_path, monkeypatch, Clock(), seconds=12.0)
    assert trainer.global_step == 4 and saved(tmp_path) == "step=000004.ckpt" and not trainer.should_stop


@pytest.mark.parametrize("batch, step", [(4, 2), (6, 2), (7, 3)])
def test_a_signal_within_a_step_lets_it_be_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int, step: int
) -> None:
    trainer, stop = stopped(tmp_path, monkeypatch, Clock(send_at=batch))
    assert stop.signal == signal.SIGTERM and not stop.by_time
    assert trainer.global_step == step and saved(tmp_path) == f"step={step:06d}.ckpt"


def test_without_either_nothing_is_different(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, stop = stopped(tmp_path, monkeypatch, Clock(), seconds=1000.0)
    assert trainer.global_step == 4 and not stop.decided
