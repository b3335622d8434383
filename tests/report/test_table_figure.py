"""The figure of a table."""

from __future__ import annotations

import math

import pytest
import torch

from partcraft_lit.core.images import read_image
from partcraft_lit.report.table_figure import Bar, Figure, Line, Panel, Point, draw_figure

NAN = math.nan
CASES = {
    "bars": Figure([Panel("EMR", [Bar("partcraft", 0.5, 0.4, 0.6, True), Bar("a long name " * 5, 0.0, NAN, NAN)])]),
    "negative bars": Figure([Panel("silhouette", [Bar("a", -0.2, -0.3, -0.1)])]),
    "a mean outside of its interval": Figure([Panel("KID", [Bar("a", 0.2, 0.3, 0.4), Bar("b", 0.5, 0.3, 0.4)])]),
    "bars of other rows": Figure([Panel("x", [Bar("a", 1, 1, 1)]), Panel("y", [Bar("b", 1, 1, 1)])]),
    "lines": Figure([Panel(str(i), [Line("", [Point(x, x, x - 1, x + 1) for x in (0, 1e-5, 0.1)])]) for i in range(4)]),
    "one point": Figure([Panel("x", [Line("a", [Point(1, 0.5, 0.4, 0.6)]), Line("b", [Point(1, 0.5, NAN, NAN)])])]),
    "equal": Figure([Panel("x", [Line("a", [Point(1, 0.0, 0.0, 0.0), Point(2, 0.0, 0.0, 0.0)])])]),
    "many lines": Figure(
        [Panel("x", [Line(f"method {i}", [Point(1, i, i, i), Point(2, 1, 1, 1)]) for i in range(12)])],
        "a long description of what is along the axis, in so many words",
    ),
    "nothing": Figure([Panel("x", [])]),
}


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_can_be_drawn(name, log, tmp_path, recwarn):
    figure = Figure(CASES[name].panels, CASES[name].x, log)
    image = read_image(draw_figure(tmp_path / "figure.png", "How does it change? " * 8, figure))
    assert image.shape[2] == 1600 and image.min() < 60
    assert (tmp_path / "figure.svg").read_text(encoding="utf-8").startswith("<?xml")
    assert [str(warning.message) for warning in recwarn] == []


def colored(image, color):
    return (image.permute(1, 2, 0).int() - torch.tensor(color)).abs().sum(dim=2) < 6


def test_the_best_bar_stands_out_and_in_grey_too(tmp_path):
    image = read_image(draw_figure(tmp_path / "figure.png", "x", CASES["bars"]))
    best = image.permute(1, 2, 0)[colored(image, (58, 140, 196))]
    assert len(best) > 2000 and best.float().mean() < 150  # the other bars are at 215


def test_every_line_of_a_crowd_is_inside_the_axes(tmp_path):
    """Lines that stand aside are drawn in coordinates that matplotlib does not scale the axes to by itself."""
    lines = [Line(f"{i}", [Point(1, i, i - 0.5, i + 0.5), Point(2, 9 - i, NAN, NAN)]) for i in range(8)]
    image = read_image(draw_figure(tmp_path / "figure.png", "x", Figure([Panel("x", lines)])))
    above_legend = image[:, : int(0.8 * image.shape[1])]
    for color in ((0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167)):
        assert int(colored(above_legend, color).sum()) > 500
