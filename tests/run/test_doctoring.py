"""The doctor names what is missing, and what it advises fits."""

from __future__ import annotations

import pytest

from partcraft_lit.run.forecast import images_at_once


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


def test_a_device_that_is_too_small_is_told_so(workshop):
    ended = doctor(workshop, "doctor.memory_gb=0.01")
    assert ended.code == 0, ended.out
    assert "It does not fit. Not even one image" in ended.out


def test_what_is_missing_is_all_named_at_once(workshop, tmp_path):
    ended = doctor(workshop, f"backbone.source={tmp_path}", f"dataset.dir={tmp_path / 'nowhere'}")
    assert ended.code == 2
    assert "MISSING  data set" in ended.out and "MISSING  backbone" in ended.out
    assert "2 thing(s) are missing" in ended.out
