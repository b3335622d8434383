"""Charts: scales, smoothing, and words for those who do not see them."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree

import pytest

from partcraft_lit.report.charts import ChartImage, _limits, line_chart, smooth, thin
from partcraft_lit.report.sections import Chart, Curve

FLAT = [(step, 2.0) for step in range(50)]


def chart(points: list[tuple[float, float]], **settings: object) -> ChartImage | None:
    return line_chart(Chart("Loss <a>", [Curve("loss", points)], **settings))  # type: ignore[arg-type]


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
def test_charts_are_well_formed_for_a_light_and_a_dark_page(points: list[tuple[float, float]], recwarn) -> None:
    drawn = chart(points)
    assert drawn is not None
    assert drawn.light != drawn.dark
    for image in (drawn.light, drawn.dark):
        assert ElementTree.fromstring(image).tag.endswith("svg")
    assert [str(warning.message) for warning in recwarn] == []


def test_nothing_finite_gives_no_chart() -> None:
    assert chart([(0, float("nan"))]) is None
    assert chart([]) is None


def test_lost_values_and_ends_are_said() -> None:
    assert chart([*FLAT, (50, float("nan"))], note="Mean.").note == "From 2 to 2. Mean. 1 values are not finite."
    assert chart(FLAT).note == "From 2 to 2."


def test_log_scale_where_values_span_much_and_only_for_positive_ones() -> None:
    wide = [(step, 10.0 ** (-step / 10)) for step in range(40)]
    assert chart(wide).log
    assert not chart(FLAT).log
    assert not chart(wide, log=False).log
    assert not chart([*wide, (50, 0.0)], log=True).log


def test_a_curve_that_starts_high_shows_zero_and_a_flat_one_far_above_does_not() -> None:
    assert _limits([0.1, 0.5], log=False)[0] == 0
    assert _limits([0.90, 0.95], log=False)[0] > 0.8
    assert _limits([1.0] * 999 + [1e6], log=False)[1] < 2  # one spike does not flatten a chart


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


def test_curves_of_parts_are_told_in_words() -> None:
    curves = [Curve("head", [(0, 0.2), (1, 0.5)], part=1), Curve("wing", [(0, 0.2), (1, 0.75)], part=2)]
    assert line_chart(Chart("Attention", curves)).words == "head from 0.2 to 0.5; wing from 0.2 to 0.75"
