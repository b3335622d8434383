"""metrics.jsonl: complete, parseable at any moment, and seamless after a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from stand_in import StandIn, bound, fit

from partcraft_lit.callbacks.checkpoint import Checkpoints
from partcraft_lit.callbacks.hooks import log_metrics
from partcraft_lit.callbacks.learning_rates import LearningRates
from partcraft_lit.callbacks.metrics_log import (
    MetricsLog,
    append_metrics,
    drop_from_step,
    read_metrics,
    replace_metrics,
)
from partcraft_lit.callbacks.throughput import Throughput


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_logged_number_is_a_line_also_without_any_logger(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    log = bound(MetricsLog(), tmp_path / "run")
    trainer = fit(StandIn(), log, Throughput(every_n_steps=2), folder=tmp_path, steps=4, logger=False)
    curves = read_metrics(path)
    assert [step for step, _ in curves["train/loss"]] == [0, 1, 2, 3]
    assert curves["train/loss"][-1][1] == pytest.approx(float(trainer.callback_metrics["train/loss"]))
    assert [step for step, _ in curves["perf/images_per_s"]] == [1, 3]
    assert 0.01 < curves["perf/max_mem_gb"][0][1] < 100
    assert all(line["time"] > 1.7e9 for line in lines(path))


def test_a_resumed_run_reads_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log, checkpoints = (bound(callback, tmp_path) for callback in (MetricsLog(), Checkpoints(3)))
    fit(StandIn(), log, checkpoints, folder=tmp_path, steps=5)
    assert [step for step, _ in read_metrics(path)["train/loss"]] == [0, 1, 2, 3, 4]
    lost = read_metrics(path)["train/loss"][3:]
    with path.open("a") as file:
        file.write('{"step": 5, "train/lo')  # killed while writing
    checkpoint = tmp_path / "checkpoints" / "step=000003.ckpt"
    fit(StandIn(), log, folder=tmp_path, steps=7, ckpt_path=checkpoint, start=3)
    curve = read_metrics(path)["train/loss"]
    assert [step for step, _ in curve] == [0, 1, 2, 3, 4, 5, 6]
    assert len([line for line in lines(path) if "train/loss" in line]) == 7
    assert curve[3:5] != lost  # written anew (the stand-in draws from the global generator)


def test_values_that_json_lacks_come_back(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_metrics(path, 3, {"a": float("nan"), "b": float("-inf"), "c": 1})
    assert json.loads(path.read_text())["a"] == "nan"
    curves = read_metrics(path)
    assert math.isnan(curves["a"][0][1])
    assert curves["b"] == [(3, float("-inf"))]
    assert curves["c"] == [(3, 1.0)]


def test_an_unfinished_line_is_passed_over_and_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_metrics(path, 0, {"a": 1})
    with path.open("a") as file:
        file.write('{"step": 1, "a"')
    append_metrics(path, 2, {"a": 3})
    assert read_metrics(path) == {"a": [(0, 1.0), (2, 3.0)]}


def test_the_later_line_of_a_step_wins(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    for value in (1, 2):
        append_metrics(path, 5, {"eval/emr": value})
    assert read_metrics(path) == {"eval/emr": [(5, 2.0)]}


def test_dropping_leaves_a_file_without_anything_to_drop_untouched(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    drop_from_step(path, 3)
    assert not path.exists()
    append_metrics(path, 0, {"a": 1})
    before = path.stat().st_mtime_ns, path.stat().st_ino
    drop_from_step(path, 3)
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    drop_from_step(path, 0)
    assert path.read_text() == ""


def test_a_missing_file_has_no_curves(tmp_path: Path) -> None:
    assert read_metrics(tmp_path / "nothing.jsonl") == {}


def test_numbers_of_callbacks_reach_all_loggers_on_their_axis(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = bound(MetricsLog(), tmp_path)
    trainer = fit(StandIn(), log, folder=tmp_path, steps=3)
    trainer.loggers = [log.logger]
    log_metrics(trainer, {"eval/emr@composition_2": 0.5})
    assert read_metrics(path)["eval/emr@composition_2"] == [(2, 0.5)]


class Named(StandIn):
    def configure_optimizers(self):
        return torch.optim.SGD([{"params": list(self.parameters()), "lr": 0.1, "name": "tokens"}])


def test_learning_rates_stand_in_the_line_of_their_step(tmp_path: Path) -> None:
    log = bound(MetricsLog(), tmp_path)
    fit(Named(), log, LearningRates(), folder=tmp_path, steps=4, accumulate=2)
    assert [(line["step"], line["train/lr_tokens"]) for line in lines(tmp_path / "metrics.jsonl")] == [
        (step, pytest.approx(0.1)) for step in range(4)
    ]


class Killed(BaseException):
    """As kill -9: nothing that training would do afterwards is done."""


class KillingCheckpoints(Checkpoints):
    """The process ends right after the checkpoint of a step stands."""

    def save(self, trainer):
        super().save(trainer)
        raise Killed


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_lines_of_a_checkpoint_s_step_stand_before_it(tmp_path: Path, accumulate: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    logs = {folder: bound(MetricsLog(), folder) for folder in (whole, killed)}
    speed = Throughput(every_n_steps=1)
    fit(StandIn(), logs[whole], speed, folder=whole, steps=6, accumulate=accumulate)
    with pytest.raises(Killed):
        fit(StandIn(), logs[killed], speed, bound(KillingCheckpoints(3), killed), folder=killed, steps=6,
            accumulate=accumulate)  # fmt: skip
    checkpoint = killed / "checkpoints" / "step=000003.ckpt"
    log = bound(MetricsLog(), killed)  # of another process
    fit(StandIn(), log, speed, folder=killed, steps=6, accumulate=accumulate, ckpt_path=checkpoint)
    shapes = [
        sorted((line["step"], *sorted(line.keys())) for line in lines(folder / "metrics.jsonl"))
        for folder in (whole, killed)
    ]
    assert shapes[0] == shapes[1]
    assert [line["step"] for line in lines(killed / "metrics.jsonl") if "train/loss" in line] == list(range(6))


def test_final_values_that_are_computed_again_take_the_place_of_the_former(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    append_metrics(path, 7, {"train/loss": 1})
    for value in (0.1, 0.2):
        replace_metrics(path, 7, {"eval/emr": value, "eval/cosim": 1})
        replace_metrics(path, 7, {"tokens/silhouette": value})
        with path.open("a") as file:
            file.write('{"step": 7, "ev')  # killed while writing
    replace_metrics(path, 7, {"tokens/silhouette": 0.2})
    assert [sorted(line)[0] for line in lines(path)] == ["step", "eval/cosim", "step"]
    assert read_metrics(path)["eval/emr"] == [(7, 0.2)]
