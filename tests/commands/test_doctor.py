"""The doctor names what is missing, and what it advises fits."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest

from partcraft_lit.backbones.settings import HardwareSettings
from partcraft_lit.commands.doctor import forecast as forecast_module
from partcraft_lit.commands.doctor.forecast import Forecast, images_at_once


@pytest.mark.parametrize(("memory", "expected"), [(20.0, 14), (10.0, 5), (6.0, 1), (5.5, 0), (1.0, 0)])
def test_as_many_images_at_once_as_nine_tenths_of_the_memory_hold(memory, expected):
    assert images_at_once(base=4.0, one=5.0, memory=memory) == expected


def doctor(workshop, *overrides):
    return workshop("doctor", *[a for a in workshop.arguments if a != "trainer=cpu"], *overrides)


def test_it_says_what_a_run_would_cost(workshop):
    ended = doctor(workshop)
    assert ended.code == 0, ended.out
    for words in ("data set: 9 images", "patch features: color", "backbone: sd15 at 32 px", "disk for paths.store"):
        assert words in ended.out
    assert "One step of 2 image(s):" in ended.out and "The whole run: about" in ended.out
    assert "does not fit" not in ended.out


def test_a_sweep_computes_what_is_stored_once():
    forecast = Forecast(
        batch_size=1, seconds_per_step=1.0, images_per_s=1.0, peak_bytes=1.0, memory_bytes=2.0, measured=True,
        fits=True, advice="", advice_bytes=0.0, runs=4,
        seconds={"patch features": 5.0, "latents": 7.0, "training": 100.0, "scores": 3.0},
    )  # fmt: skip
    assert forecast.total_seconds == 5 + 7 + 4 * 103


def test_what_is_advised_was_measured_and_fits(monkeypatch):
    """Steps whose first image costs 1 and every further one 2, of which the arithmetic knows nothing."""
    peaks = {1: 5.0, 2: 7.0, 4: 11.0, 8: 19.0}
    tried = []
    monkeypatch.setattr(
        forecast_module, "measure", lambda module, size, precision: tried.append(size) or (4.0, peaks[size], 1.0)
    )
    settings = SimpleNamespace(
        data=SimpleNamespace(batch_size=8),
        hardware=HardwareSettings(gradient_checkpointing=False, max_batch_size=None, offload=(), compile=False),
    )
    advice = functools.partial(forecast_module._advice, settings, None, (4.0, 5.0), precision="32-true")
    assert advice(memory=10.0, here=100.0) == ("hardware.max_batch_size=2", 7.0)  # 5 by arithmetic, so 4, which is 11
    assert tried == [4, 2]
    tried.clear()
    assert advice(memory=10.0, here=6.0) == ("hardware.max_batch_size=4", 8.0), "what cannot be tried here is estimated"
    assert tried == []


def test_a_device_that_is_too_small_is_told_so(workshop):
    ended = doctor(workshop, "doctor.memory_gb=0.01")
    assert ended.code == 0, ended.out
    assert "It does not fit. Not even one image" in ended.out


def test_what_is_missing_is_all_named_at_once(workshop, tmp_path):
    ended = doctor(workshop, f"backbone.source={tmp_path}", f"dataset.dir={tmp_path / 'nowhere'}")
    assert ended.code == 2
    assert "MISSING  data set" in ended.out and "MISSING  backbone" in ended.out
    assert "2 thing(s) are missing" in ended.out
