from __future__ import annotations

import optuna
import pytest

from partcraft_lit.search.space import Choice, Interval, Steps, grid_size, grid_values, representatives


@pytest.fixture
def trial():
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask()


def test_values_lie_where_they_are_asked_for(trial):
    for number in range(20):
        assert 1e-4 <= Interval(1e-4, 1, log=True).suggest(trial, f"log{number}") <= 1
        whole = Interval(2, 5, whole=True).suggest(trial, f"whole{number}")
        assert isinstance(whole, int) and 2 <= whole <= 5
        # 0.1 + 2 * 0.1 is not 0.3 in floating point; what a run gets is what the range says.
        assert Steps((0.1, 0.2, 0.3)).suggest(trial, f"step{number}") in (0.1, 0.2, 0.3)
        assert Steps((4, 8, 12)).suggest(trial, f"even{number}") in (4, 8, 12)
        assert Choice(("a", 2, True)).suggest(trial, f"choice{number}") in ("a", 2, True)
    assert Steps((0.5,)).suggest(trial, "one") == 0.5 and Steps((3,)).suggest(trial, "three") == 3


def test_few_points_show_every_choice_and_every_end():
    space = {"a": Interval(0.5, 2), "b": Choice(("x", "y", "z")), "c": Interval(1, 9, whole=True)}
    points = representatives(space)
    assert points[0] == {"a": 0.5, "b": "x", "c": 1} and len(points) == 1 + 1 + 2 + 1
    assert {point["b"] for point in points} == {"x", "y", "z"} and {point["a"] for point in points} == {0.5, 2.0}


def test_a_grid_is_the_product_of_what_can_be_counted():
    assert grid_size({"a": Choice((1, 2)), "b": Steps((1, 3, 5)), "c": Interval(0, 3, whole=True)}) == 2 * 3 * 4
    assert grid_values(Interval(0, 1)) is None and grid_size({"a": Choice((1,)), "b": Interval(0, 1)}) is None
