"""Part fidelity while training goes on."""

from __future__ import annotations

import json
import math

import pytest
import torch
from stand_in import StandIn, bound, fit

from partcraft_lit.callbacks.checkpoint import damage, newest_good
from partcraft_lit.callbacks.live_score import LiveScore, read_best, why
from partcraft_lit.core.types import PartPrediction


class Reader:
    """Finds the codes that a script gives, call by call."""

    num_parts = 2

    def __init__(self, found):
        self.found = iter(found)

    def predict(self, images):
        code = next(self.found)
        codes = torch.full((len(images), 3), int(code) if math.isfinite(code) else 0)
        self.broken = not math.isfinite(code)
        return PartPrediction(codes, [], torch.zeros(len(images), 3, 4))

    def centroids(self, codes):
        table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        return table[codes.clamp(0, 1)] * (math.nan if self.broken else 1.0)


def live(folder, found, every=2) -> LiveScore:
    return bound(LiveScore(every), folder, predictor=Reader(found))


def test_the_best_weights_are_kept_and_the_reason_is_said(tmp_path):
    fit(StandIn(), live(tmp_path, [1, 0, 1]), folder=tmp_path, steps=5)
    (path,) = (tmp_path / "checkpoints" / "best").glob("*.ckpt")
    assert path.name == "step=000004.ckpt" and damage(path) is None
    content = torch.load(path, weights_only=True)
    assert content["global_step"] == 4 and "optimizer_states" not in content
    best = json.loads((path.parent / "best.json").read_text())
    assert best["why"].startswith("The best of the probed steps is 4, with a live score of 1.000 (EMR 1.000, CoSim")
    assert best["why"].endswith("; step 5, the last, has 0.000.")
    assert newest_good(path.parent) == path and newest_good(tmp_path / "checkpoints") is None


def test_an_equal_score_later_is_no_better(tmp_path):
    fit(StandIn(), live(tmp_path, [0, 0]), folder=tmp_path, steps=4)
    assert [p.name for p in (tmp_path / "checkpoints" / "best").glob("*.ckpt")] == ["step=000002.ckpt"]


def test_nan_is_never_the_best(tmp_path):
    fit(StandIn(), live(tmp_path, [1, math.nan]), folder=tmp_path, steps=4)
    best = read_best(tmp_path / "checkpoints")
    assert best["step"] == 2 and best["last"] == {"step": 4, "score": None}
    assert best["why"].endswith("step 4, the last, has no finite score.")


def test_a_failure_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="The live score at step 2 failed, training goes on"):
        fit(StandIn(), live(tmp_path, []), folder=tmp_path, steps=2)
    assert read_best(tmp_path / "checkpoints") == {}


def test_the_sentence_of_a_last_best():
    numbers = {"live/emr": 0.5, "live/cosim": 0.75}
    text = why({"step": 8, "score": 0.625, "numbers": numbers, "last": {"step": 8, "score": 0.625}})
    assert text.endswith("with a live score of 0.625 (EMR 0.500, CoSim 0.750); it is also the last.")


def test_training_does_not_notice(tmp_path):
    def weights(callbacks, name):
        module = StandIn()
        torch.manual_seed(0)
        fit(module, *callbacks, folder=tmp_path / name, steps=4)
        return module.weight.detach()

    assert torch.equal(weights([], "without"), weights([live(tmp_path / "with", [0, 1])], "with"))
