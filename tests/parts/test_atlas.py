from __future__ import annotations

import dataclasses
import itertools
import json

import pytest
import torch
from PIL import Image

from discovery import dataset_parts, discover
from partcraft_lit.core.types import GroundTruth
from partcraft_lit.parts import atlas as atlas_module
from partcraft_lit.parts.atlas import Atlas, part_box
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.parts.foreground import confidence_in_words


def test_atlas_is_a_readable_image(tmp_path, found, found_source):
    path = Atlas(found_source, found).draw_overview(tmp_path / "new" / "atlas.png", codes=2)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 1000
        assert image.height > 3 * 150
        assert image.text["Title"] == "Part atlas"
        colors = {color for _, color in image.getcolors(1 << 24)}
    assert (230, 159, 0) in colors  # the bar of part 1


def test_masks_are_a_readable_image(tmp_path, found, found_source):
    path = Atlas(found_source, found).draw_masks(tmp_path / "masks.png", n=5)
    with Image.open(path) as image:
        assert image.width > 4 * 320


def test_rare_parts_single_images_and_long_ones_are_drawn(tmp_path, creatures, meaningful):
    source = creatures(2, sizes=((300, 40), (40, 300)))
    atlas = Atlas(source, discover(source, meaningful(), M=2, K=9, codes="class", nredo=1))
    assert atlas.draw_overview(tmp_path / "atlas.png").stat().st_size > 1000
    assert atlas.draw_masks(tmp_path / "masks.png").stat().st_size > 1000
    assert atlas.draw_codes(tmp_path / "codes.png", part=1).stat().st_size > 1000  # of classes that never show it, too


def test_all_codes_are_on_the_pages_each_once_and_in_order(tmp_path, found, found_source, monkeypatch):
    monkeypatch.setattr(atlas_module, "CODES_PER_PAGE", 2)
    atlas = Atlas(found_source, found)
    drawn = []
    monkeypatch.setattr(
        Atlas, "_code_block", lambda _, part, code, crops: drawn.append((part, code)) or torch.zeros(3, 9, 9).byte()
    )
    counts = found.dictionary.codes_per_part
    pages = atlas.pages()
    assert len(pages) == sum(-(-count // 2) for count in counts)
    for name, (part, page) in pages.items():
        atlas.draw_codes(tmp_path / name, part, page)
    assert drawn == [(part, code) for part, count in enumerate(counts) for code in range(count)]
    monkeypatch.setattr(atlas_module, "CODES_PER_PAGE", 48)
    assert list(atlas.pages()) == ["atlas_part0.png", "atlas_part1.png", "atlas_part2.png"]


def test_a_label_is_nearer_to_its_own_crops_than_to_the_row_above():
    block = torch.zeros(3, 50, 30, dtype=torch.uint8)
    block[:, :21] = 255  # a label of one line, 14 px high in a strip of 21
    rows = atlas_module._rows([block, block], columns=1)
    dark = (rows[0] == 0).all(dim=1).nonzero()[:, 0].tolist()
    above = next(b - a for a, b in itertools.pairwise(dark) if b - a > 1) - 1
    assert above - 21 >= 5 * (21 - 14) // 2


def test_a_part_is_drawn_again_only_if_it_has_changed(tmp_path, found, found_source):
    """Of another part its cells may go elsewhere: what is drawn, and what is said to decide it, stays."""
    without = [torch.where(cells == 2, 0, cells) for cells in found.label_maps]
    codes = found.codes.clone()
    codes[:, 2] = -1
    changed = dataclasses.replace(found, label_maps=without, codes=codes)
    before, after = Atlas(found_source, found), Atlas(found_source, changed)
    pages = {part: (before.about_codes(part), after.about_codes(part)) for part in (0, 1, 2)}
    assert [part for part, (one, other) in pages.items() if one != other] == [0, 2]
    drawn = [atlas.draw_codes(tmp_path / f"{n}.png", 1).read_bytes() for n, atlas in enumerate((before, after))]
    assert drawn[0] == drawn[1]
    json.dumps(pages)  # plain values


def test_sections_that_were_drawn_before_are_taken(tmp_path, found, found_source):
    kept, drawn = {}, []

    def remember(about, draw):
        key = json.dumps(about)
        if key not in kept:
            kept[key] = draw()
            drawn.append(about[0])
        return kept[key]

    Atlas(found_source, found, remember).draw_overview(tmp_path / "one.png")
    Atlas(found_source, found, remember).draw_masks(tmp_path / "masks.png", n=3)
    assert drawn == ["section"] * 3 + ["pair"] * 3
    names = ("background", "beak", found.dictionary.names[2])
    renamed = dataclasses.replace(found, dictionary=dataclasses.replace(found.dictionary, names=names))
    Atlas(found_source, renamed, remember).draw_overview(tmp_path / "two.png")
    Atlas(found_source, renamed, remember).draw_masks(tmp_path / "masks.png", n=3)
    assert drawn[6:] == ["section"]
    Atlas(found_source, found).draw_overview(tmp_path / "three.png")
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "three.png").read_bytes()


class NeverShown:
    """Grey images with a red square; the second part is in none of them."""

    class_noun = ""
    class_names = ()
    part_names = ("red", "never")

    def __len__(self):
        return 3

    def truth(self, index):
        labels = torch.zeros(32, 48, dtype=torch.uint8)
        labels[8:24, 4 + 8 * index : 20 + 8 * index] = 1
        return GroundTruth(labels, (0, 0), self.part_names)

    def image(self, index):
        colors = torch.tensor([[120, 120, 120], [220, 30, 30]], dtype=torch.uint8)
        return colors[self.truth(index).label_map.long()].permute(2, 0, 1)

    def name(self, index):
        return f"{index}.png"

    def content_hash(self, index):
        return f"{index:032x}"

    def label(self, index):
        return None


def test_a_part_that_no_image_shows_is_told_and_ends_in_no_traceback(tmp_path):
    source = NeverShown()
    found = dataset_parts(source, ColorFeatures(grid=16, bias=0.5), source="masks", K=2)
    atlas = Atlas(source, found)
    for draw in (atlas.draw_overview, atlas.draw_masks):
        assert draw(tmp_path / "sheet.png").stat().st_size > 1000
    for name, (part, page) in atlas.pages().items():
        assert atlas.draw_codes(tmp_path / name, part, page).is_file()


@pytest.mark.parametrize(
    ("confidence", "said"),
    [(0.56, "0.56 of 1: good"), (0.3, "0.30 of 1: fair, look at masks.png"), (0.1, "0.10 of 1: poor, try other")],
)
def test_confidence_says_what_is_good_and_what_to_do(confidence, said):
    assert said in confidence_in_words(confidence)


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
