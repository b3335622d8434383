"""Lines of a figure: colours, dashes and shapes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from partcraft_lit.report.strokes import dashed, stroke

#: How the colours are seen, on linear RGB. Source: Machado et al. (2009), table 1, severity 1.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color, sight):
    share = np.array(color) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    ratio = XYZ @ np.clip(np.array(sight) @ linear, 0, 1) / (XYZ @ np.ones(3))
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT)
def test_eight_colors_are_told_apart_by_everybody(sight):
    seen = [lab(stroke(index).color, SIGHT[sight]) for index in range(8)]
    assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 15
    assert all(math.dist(color, lab((255, 255, 255), SIGHT[sight])) > 25 for color in seen)


def test_no_two_of_many_lines_look_the_same():
    assert len({stroke(index) for index in range(24)}) == 24
    assert len({stroke(index).shape for index in range(8)}) == 8


def test_dashes_run_on_around_corners():
    corner = [(0.0, 0.0), (5.0, 0.0), (5.0, 5.0)]
    assert list(dashed(corner, ())) == [corner]
    assert list(dashed(corner, (3, 1))) == [[(0, 0), (3, 0)], [(4, 0), (5, 0), (5, 2)], [(5, 3), (5, 5)]]
    assert list(dashed([(0.0, 0.0), (2.0, 0.0)], (1, 1))) == [[(0, 0), (1, 0)]]
