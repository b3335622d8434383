"""The part under a pixel, by hand and against the overlay's own labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from partcraft_lit.composer.views import ImageView
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.visualization import part_colors

NAMES = ("background", "head", "wing")


def view_of(label_map, width, height, codes=(0, 3, 7)):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    grid = np.array(label_map, dtype=np.uint8)
    features = torch.eye(3)
    return ImageView(image, grid, torch.tensor(codes), (0.5, 0.6, 0.7), features, NAMES, index=12, name="a.jpg")


def name_at(view, x, y):
    choice = view.part_at(x, y)
    return None if choice is None else choice.part


def test_the_part_under_a_pixel_of_four_cells():
    """Cells of 20 pixels with centres at 10 and 30: half of the way between two centres belongs to either."""
    view = view_of([[1, 0], [0, 2]], 40, 40)
    assert [name_at(view, x, y) for x, y in [(0, 0), (39, 0), (0, 39), (39, 39)]] == ["head", None, None, "wing"]
    assert name_at(view, 19, 0) == "head" and name_at(view, 20, 0) is None
    assert name_at(view, 0, 19) == "head" and name_at(view, 0, 20) is None
    # At the middle of all four cells the background has half of the weight, and each part a quarter.
    assert name_at(view, 19, 19) is None and name_at(view, 20, 20) is None
    for x, y in [(-1, 0), (40, 39), (0, 40), (-0.5, 5)]:
        assert view.part_at(x, y) is None
    assert name_at(view, 0.99, 0.01) == "head"  # a point inside the first pixel


def test_a_choice_says_where_it_comes_from():
    choice = view_of([[1]], 20, 10).part_at(19, 9)
    assert (choice.part, choice.code, choice.image, choice.image_name, choice.cosine) == ("head", 3, 12, "a.jpg", 0.6)
    assert choice.token == "<head:3>" and choice.weighted(1.3).token == "<head:3>*1.3"


def test_the_ends_of_a_long_image_are_not_read():
    """400 x 40 pixels: the middle 120 are kept, from 140 to 260."""
    view = view_of([[1, 1, 2, 2, 2, 2]], 400, 40)
    expected = {139: None, 140: "head", 179: "head", 180: "wing", 259: "wing", 260: None, 0: None, 399: None}
    assert {x: name_at(view, x, 39) for x in expected} == expected
    tall = view_of([[1], [2]], 10, 90)  # the middle 30, from 30 to 60
    assert [name_at(tall, 5, y) for y in (29, 30, 44, 45, 59, 60)] == [None, "head", "head", "wing", "wing", None]
    labels = view.labels()
    assert labels.shape == (40, 400) and not labels[:, :140].any() and not labels[:, 260:].any()


@pytest.mark.parametrize(
    "width, height, grid", [(37, 53, (5, 4)), (64, 48, (6, 8)), (150, 31, (3, 9)), (20, 20, (30, 30))]
)
def test_the_part_under_each_pixel_is_the_overlay(width, height, grid):
    """Of non-square, clamped, and finely labelled images."""
    label_map = np.random.default_rng(0).integers(0, 3, grid)
    view = view_of(label_map, width, height)
    labels = view.labels()
    for y in range(0, height, 3):
        for x in range(width):
            assert name_at(view, x, y) == (None if labels[y, x] == 0 else NAMES[labels[y, x]]), (x, y)


def test_overlay_and_crop_show_the_part():
    view = view_of([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 2]], 80, 80)
    overlay = np.array(view.overlay(side=80))
    assert overlay.shape == (80, 80, 3)
    tint = (part_colors(3)[1].float() * 0.6).round().numpy()  # on a black image
    assert np.abs(overlay[40, 40].astype(float) - tint).max() <= 1
    assert overlay[2, 2].max() == 0  # the background is not tinted
    crop = view.crop("head", side=64)
    assert crop.size == (64, 64) and isinstance(crop, Image.Image)
    assert np.array(crop)[32, 32].max() == 0 and np.array(crop)[1, 1].min() > 150  # the rest is faded
    assert view.crop(0, side=64).size == (64, 64) and view.thumbnail(20).size == (20, 20)


def test_a_part_that_is_not_there():
    view = view_of([[1]], 20, 20, codes=(-1, 3, -1))
    assert view.codes == {"head": 3} and [choice.part for choice in view.choices] == ["head"]
    for part in ("wing", 2, "tail", 9):
        with pytest.raises(UserError, match="shows no"):
            view.choice(part)
