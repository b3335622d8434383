"""Charts: scales, smoothing, and numbers that a reader can trust."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ElementTree

import pytest

from partcraft_lit.report.charts import Axis, line_chart, number, smooth, thin
from partcraft_lit.report.content import Chart, Curve

FLAT = [(step, 2.0) for step in range(50)]


def chart(points: list[tuple[float, float]], **settings: object) -> str:
    return line_chart(Chart("Loss <a>", [Curve("loss", points)], **settings))  # type: ignore[arg-type]


def test_the_figure_is_well_formed_and_escaped() -> None:
    figure = chart(FLAT, note="a & b")
    svg = ElementTree.fromstring(figure[figure.index("<svg") : figure.index("</svg>") + 6])
    assert svg.attrib["role"] == "img"
    assert "Loss &lt;a&gt;" in figure
    assert "a &amp; b" in figure


@pytest.mark.parametrize(
    "points",
    [
        [(0, 1.0)],
        FLAT,
        [(0, 0.0), (1, 0.0)],
        [(0, -5.0), (10, 5.0)],
        [(0, 1e-9), (1, 1e9)],
        [(step, 0.5 ** (step / 9)) for step in range(3000)],
        [(0, float("nan")), (1, 1.0), (2, float("inf")), (3, 2.0)],
    ],
)
def test_every_line_stays_inside_the_picture(points: list[tuple[float, float]]) -> None:
    figure = chart(points)
    paths = re.findall(r'class="(?:main|raw)" d="([^"]+)"', figure)
    assert paths
    for path in paths:
        for x, y in (map(float, pair.split()) for pair in path.strip("M").split("L")):
            assert 0 <= x <= 420
            assert 0 <= y <= 236


def test_nothing_finite_gives_no_chart() -> None:
    assert chart([(0, float("nan"))]) == ""
    assert chart([]) == ""


def test_lost_values_are_said() -> None:
    assert "1 values are not finite" in chart([*FLAT, (50, float("nan"))])
    assert "not finite" not in chart(FLAT)


def test_log_scale_where_values_span_much_and_only_for_positive_ones() -> None:
    wide = [(step, 10.0 ** (-step / 10)) for step in range(40)]
    assert "log scale" in chart(wide)
    assert "log scale" not in chart(FLAT)
    assert "log scale" not in chart(wide, log=False)
    assert "log scale" not in chart([*wide, (50, 0.0)], log=True)


def test_axes_map_ends_and_mark_round_values() -> None:
    linear = Axis(0, 7, 100, 0, log=False)
    assert [linear.place(0), linear.place(3.5), linear.place(7)] == [100, 50, 0]
    assert linear.ticks() == [0, 2, 4, 6]
    log = Axis(0.01, 100, 0, 100, log=True)
    assert log.place(1) == pytest.approx(50)
    assert {0.01, 0.1, 1.0, 10.0, 100.0} <= {round(tick, 9) for tick in log.ticks()}


def test_a_curve_that_starts_high_shows_zero_and_a_flat_one_far_above_does_not() -> None:
    assert Axis.around([0.1, 0.5], 0, 1, log=False, roomy=True).low == 0
    assert Axis.around([0.90, 0.95], 0, 1, log=False, roomy=True).low > 0.8


def test_smoothing_keeps_constants_and_straight_lines_and_reduces_noise() -> None:
    assert smooth(FLAT, 9) == FLAT
    line = [(float(x), 3.0 * x) for x in range(30)]
    assert [value for _, value in smooth(line, 5)][2:-2] == pytest.approx([value for _, value in line][2:-2])
    zigzag = [(x, (-1.0) ** x) for x in range(100)]
    assert max(abs(value) for _, value in smooth(zigzag, 9)) <= 0.2
    assert smooth(FLAT, 1) == FLAT


def test_thinning_keeps_the_mean_and_the_order() -> None:
    points = [(float(x), math.sin(x)) for x in range(1000)]
    few = thin(points, 100)
    assert len(few) == 100
    assert sum(value for _, value in few) / 100 == pytest.approx(sum(value for _, value in points) / 1000)
    assert [x for x, _ in few] == sorted(x for x, _ in few)
    assert thin(points[:5], 100) == points[:5]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (2, "2"),
        (150, "150"),
        (1234, "1 234"),
        (75_000, "75k"),
        (2e-5, "2e-5"),
        (-0.5, "-0.5"),
    ],
)
def test_numbers_are_short(value: float, shown: str) -> None:
    assert number(value) == shown


def test_several_curves_have_a_legend_in_part_colours() -> None:
    curves = [Curve("head", [(0, 0.2), (1, 0.5)], part=1), Curve("wing", [(0, 0.2), (1, 0.75)], part=2)]
    figure = line_chart(Chart("Attention", curves))
    assert "#e69f00" in figure
    assert "#0072b2" in figure
    assert "wing <b>0.75</b>" in figure
    assert "head from 0.2 to 0.5; wing from 0.2 to 0.75" in figure  # for screen readers
