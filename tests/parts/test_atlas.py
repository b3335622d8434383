from __future__ import annotations

import pytest
import torch
from PIL import Image

from discovery import discover
from partcraft_lit.parts.atlas import draw_atlas, draw_masks, part_box


def test_atlas_is_a_readable_picture(tmp_path, found, found_source):
    path = draw_atlas(found_source, found, tmp_path / "new" / "atlas.png", codes=2)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 1000
        assert image.height > 3 * 150
        assert image.text["Title"] == "Part atlas"
        colors = {color for _, color in image.getcolors(1 << 24)}
    assert (230, 159, 0) in colors  # the bar of part 1


def test_masks_are_a_readable_picture(tmp_path, found, found_source):
    path = draw_masks(found_source, found, tmp_path / "masks.png", n=5)
    with Image.open(path) as image:
        assert image.width > 4 * 320


def test_rare_parts_single_images_and_long_ones_are_drawn(tmp_path, creatures, meaningful):
    source = creatures(2, sizes=((300, 40), (40, 300)))
    found = discover(source, meaningful(), M=2, K=9, codes="class", nredo=1)
    assert draw_atlas(source, found, tmp_path / "atlas.png").stat().st_size > 1000
    assert draw_masks(source, found, tmp_path / "masks.png").stat().st_size > 1000


def test_boxes_by_hand():
    label_map = torch.zeros(8, 8, dtype=torch.uint8)
    label_map[2:6, 2:6] = 1
    label_map[0, 7] = 1  # a speck does not widen the box
    assert part_box(label_map, 1, 80, 80, margin=0.0) == (20, 20, 60, 60)
    assert part_box(label_map, 1, 80, 80, margin=0.25) == (10, 10, 70, 70)
    label_map[7, 0] = 2
    assert part_box(label_map, 2, 80, 80, margin=0.0) == (50, 0, 80, 30)  # three cells, moved inside


@pytest.mark.parametrize("size", [(80, 80), (40, 90)])
def test_boxes_lie_inside_the_image(size):
    label_map = torch.randint(0, 4, (5, 9), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    for part in range(4):
        top, left, bottom, right = part_box(label_map, part, *size)
        assert 0 <= top < bottom <= size[0]
        assert 0 <= left < right <= size[1]
