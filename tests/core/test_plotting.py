"""The style of figures, and numbers that a reader can trust."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from partcraft_lit.core.plotting import encode_figure, line_style, number, save_figure, style

#: How colours are seen, on linear RGB. Source: Machado et al. (2009), table 1, severity 1.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def lab(color, sight):
    share = np.array(color)
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    ratio = XYZ @ np.clip(np.array(sight) @ linear, 0, 1) / (XYZ @ np.ones(3))
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def looks(count):
    with style():
        return [line_style(index) for index in range(count)]


@pytest.mark.parametrize("sight", SIGHT)
def test_eight_colors_are_told_apart_by_everybody(sight):
    seen = [lab(to_rgb(line["color"]), SIGHT[sight]) for line in looks(8)]
    assert min(math.dist(a, b) for a, b in itertools.combinations(seen, 2)) > 15
    assert all(math.dist(color, lab((1, 1, 1), SIGHT[sight])) > 25 for color in seen)


def test_no_two_of_many_lines_look_the_same():
    assert len({(line["color"], line["marker"], str(line["linestyle"])) for line in looks(24)}) == 24
    assert len({line["marker"] for line in looks(8)}) == 8  # told apart in grey
    neighbours = itertools.pairwise(line["linestyle"] for line in looks(24))
    assert all(a != b for a, b in neighbours)


def plot():
    with style():
        figure = Figure(figsize=(2, 2))
        figure.subplots().plot([0, 1], [0, 1], label="x")
        figure.legend()
    return figure


def test_png_and_svg_repeat_to_the_byte_and_hold_no_date(tmp_path):
    path = save_figure(tmp_path / "new" / "figure.png", plot(), "How?", {"score": 0.5})
    again = save_figure(tmp_path / "again.png", plot(), "How?", {"score": 0.5})
    assert path.read_bytes() == again.read_bytes()
    svg = path.with_suffix(".svg").read_text(encoding="utf-8")
    assert svg == again.with_suffix(".svg").read_text(encoding="utf-8")
    assert "<dc:date>" not in svg and "How?" in svg and "partcraft-lit" in svg
    with Image.open(path) as image:
        assert (image.info["Title"], image.info["score"], image.info["Software"]) == ("How?", "0.5", "partcraft-lit")


def test_the_users_matplotlib_stays_as_it_is():
    before = dict(matplotlib.rcParams)
    encode_figure(plot(), "png")
    assert dict(matplotlib.rcParams) == before
    code = "import sys, partcraft_lit.core.plotting;"
    code += "assert 'matplotlib.figure' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (0.12345, "0.123"),
        (2, "2"),
        (150, "150"),
        (999.7, "1 000"),
        (1234, "1 234"),
        (9_999.7, "10k"),
        (75_000, "75k"),
        (999_999, "1M"),
        (1_000_000, "1M"),
        (-2_345_678, "-2.35M"),
        (3e9, "3G"),
        (4e12, "4T"),
        (1e15, "1e15"),
        (2e-5, "2e-5"),
        (0.00099999, "0.001"),
        (-0.5, "-0.5"),
        (math.nan, "–"),
        (math.inf, "–"),
    ],
)
def test_numbers_are_short(value, shown):
    assert number(value) == shown
