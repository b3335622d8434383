"""The figure of a table."""

from __future__ import annotations

import math

import pytest

from partcraft_lit.core.images import read_image
from partcraft_lit.report.figure import Bar, Figure, Line, Panel, Point, draw_figure

NAN = math.nan
CASES = {
    "bars": Figure([Panel("EMR", [Bar("partcraft", 0.5, 0.4, 0.6, True), Bar("a long name " * 5, 0.0, NAN, NAN)])]),
    "negative bars": Figure([Panel("silhouette", [Bar("a", -0.2, -0.3, -0.1)])]),
    "lines": Figure([Panel(str(i), [Line("", [Point(x, x, x - 1, x + 1) for x in (0, 1e-5, 0.1)])]) for i in range(4)]),
    "one point": Figure([Panel("x", [Line("a", [Point(1, 0.5, 0.4, 0.6)]), Line("b", [Point(1, 0.5, NAN, NAN)])])]),
    "equal": Figure([Panel("x", [Line("a", [Point(1, 0.0, 0.0, 0.0), Point(2, 0.0, 0.0, 0.0)])])]),
    "many lines": Figure(
        [Panel("x", [Line(f"method {i}", [Point(1, i, i, i), Point(2, 1, 1, 1)]) for i in range(12)])]
    ),
    "nothing": Figure([Panel("x", [])]),
}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_can_be_drawn(name, log, tmp_path):
    figure = Figure(CASES[name].panels, "steps", log)
    image = read_image(draw_figure(tmp_path / "figure.png", "How does it change? " * 8, figure))
    assert image.shape[2] == 1280 and image.min() < 60


def test_the_best_bar_stands_out(tmp_path):
    image = read_image(draw_figure(tmp_path / "figure.png", "x", CASES["bars"]))
    strong = (image.permute(1, 2, 0).int() - image.new_tensor([11, 106, 168]).int()).abs().sum(dim=2) < 6
    assert int(strong.sum()) > 2000
