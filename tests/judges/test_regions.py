"""How a part is cut out, marked and sized, by hand."""

from __future__ import annotations

import pytest
import torch
from parts_in_view import view

from partcraft_lit.judges.judge import PartView
from partcraft_lit.judges.regions import crop_part, fit_pixels, mark_part, part_box

RED = (255, 0, 0)


def test_the_box_is_that_of_the_cells():
    assert part_box(view(RED), 1) == (12, 8, 20, 24)
    assert part_box(view(RED), 2) is None


def test_a_stray_cell_does_not_count_and_a_second_leg_does():
    label_map = torch.zeros(10, 10, dtype=torch.uint8)
    label_map[2:8, 2] = 1  # six cells
    label_map[0, 9] = 1  # one, less than a fifth of six
    seen = PartView(torch.zeros(3, 20, 30, dtype=torch.uint8), label_map)
    assert part_box(seen, 1) == (4, 6, 16, 9)
    label_map[2:5, 6] = 1
    assert part_box(seen, 1) == (4, 6, 16, 21)


def test_a_crop_is_the_square_around_the_part():
    crop = crop_part(view(RED), 1, margin=0.0, fade=0.0)
    assert crop.shape == (3, 16, 16)  # of the longer side of 8 x 16
    assert bool((crop[0, 4:12] == 255).all()) and bool((crop[1:, 4:12] == 0).all())
    assert bool((crop[:, :4] == 200).all()) and bool((crop[:, 12:] == 200).all())
    wide = crop_part(view(RED), 1, margin=1.0, fade=0.0)
    assert wide.shape == (3, 48, 48)
    assert bool((wide[:, :8] == 127).all()) and bool((wide[:, 8:16, 8:40] == 200).all())  # grey outside of the image


def test_what_is_not_the_part_fades():
    crop = crop_part(view(RED), 1, margin=0.0, fade=1.0)
    assert bool((crop[:, 0] == 127).all())
    assert crop[:, 8, 8].tolist() == [255, 0, 0]
    assert crop_part(view(RED), 1, margin=0.0, fade=0.5)[0, 0, 0] == pytest.approx((127 + 200) / 2, abs=1)


def test_a_box_is_drawn_and_the_image_is_left_alone():
    seen = view(RED, side=32)
    before = seen.image.clone()
    marked = mark_part(seen, 1)
    changed = (marked != seen.image).any(dim=0)
    rows, columns = changed.nonzero().T
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (12, 19, 8, 23)
    assert not changed[13:19, 9:23].any() and torch.equal(seen.image, before)
    assert mark_part(seen, 3) is None


def test_sizes_are_kept_between_bounds():
    image = torch.zeros(3, 20, 40, dtype=torch.uint8)
    assert fit_pixels(image, 100, 1000) is image
    assert fit_pixels(image, 3200, 4000).shape == (3, 40, 80)
    assert fit_pixels(image, 10, 200).shape == (3, 10, 20)
