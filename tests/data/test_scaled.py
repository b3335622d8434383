"""Views are drawn exactly: pixels, labels, the region that counts, and what the caption says."""

from __future__ import annotations

import pickle

import pytest
import torch

from partcraft_lit.core.images import resize
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.types import TrainingExample
from partcraft_lit.data.scaled import NOWHERE, ScaledImages, ScaledViewTransform, View, draw_view, place_labels, render

SIDE, FACTOR = 64, 4


class Pictures:
    class_noun, class_names = "bird", ()

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def image(self, index: int) -> torch.Tensor:
        return torch.randint(256, (3, 64, 80), generator=torch_generator(index), dtype=torch.uint8)

    def name(self, index: int) -> str:
        return f"{index}.png"

    def content_hash(self, index: int) -> str:
        return f"{index:032x}"

    def label(self, index: int) -> int | None:
        return None


def test_a_small_picture_by_hand():
    image = torch.arange(4, dtype=torch.uint8).view(1, 2, 2).expand(3, 2, 2) * 60
    canvas = render(image, View(size=2, top=1, left=4, across=0.5, words=""), 6)
    assert canvas[0].tolist() == [
        [127] * 6, [127, 127, 127, 127, 0, 60], [127, 127, 127, 127, 120, 180], *[[127] * 6] * 3,
    ]  # fmt: skip


def test_a_large_picture_is_cut():
    image = Pictures().image(0)[:, :, :64]
    view = View(size=80, top=-10, left=-3, across=0.0, words="")
    assert torch.equal(render(image, view, SIDE), resize(image, 80)[:, 10:74, 3:67])


def test_the_square_of_a_longer_picture():
    image = Pictures().image(0)
    for across, left in ((0.0, 0), (0.5, 8), (0.9999, 16)):
        view = View(size=64, top=0, left=0, across=across, words="")
        assert torch.equal(render(image, view, SIDE), image[:, :, left : left + 64])
        labels = torch.arange(80, dtype=torch.uint8).expand(64, 80)
        placed = place_labels(labels, view, SIDE, 1)
        assert torch.equal(placed, labels[:, left : left + 64])


@pytest.mark.parametrize("seed", range(12))
def test_labels_follow_the_pixels(seed):
    """An image whose colour is its label, rendered: each latent that counts shows that label and no canvas."""
    labels = torch.zeros(64, 64, dtype=torch.uint8)
    labels[:, 32:], labels[40:] = 1, 2
    image = (labels * 20)[None].expand(3, 64, 64).contiguous()
    view = draw_view(SIDE, torch_generator(seed))
    pixels, placed = render(image, view, SIDE)[0], place_labels(labels, view, SIDE // FACTOR, FACTOR)
    blocks = pixels.unflatten(0, (-1, FACTOR)).unflatten(2, (-1, FACTOR)).permute(0, 2, 1, 3).flatten(2)
    counted = placed != NOWHERE
    assert counted.any() and not (blocks[counted] == 127).any()
    plain = counted & (blocks.amax(dim=2) == blocks.amin(dim=2))
    assert torch.equal(placed[plain] * 20, blocks[plain][:, 0])
    if view.size >= SIDE:
        assert counted.all()
    else:  # one latent less at each side than lie wholly inside
        inside = (blocks != 127).all(dim=2)
        rows, columns = inside.any(dim=1).nonzero().flatten(), inside.any(dim=0).nonzero().flatten()
        if min(len(rows), len(columns)) > 2:
            assert int(counted.sum()) == (len(rows) - 2) * (len(columns) - 2)


def test_sizes_and_words():
    views = [draw_view(300, torch_generator(seed)) for seed in range(900)]
    with_margin, full, large = (
        [view for view in views if low <= view.size <= high] for low, high in ((100, 179), (300, 300), (360, 420))
    )
    assert len(with_margin) + len(full) + len(large) == 900, "no size from 0.6 to 1, as published"
    assert abs(len(with_margin) - 0.264 * 900) < 3 * 13.2 and abs(len(large) - 0.34 * 900) < 3 * 14.2
    assert all(len(place_labels(torch.zeros(8, 8), view, 75, 4).unique()) == 1 for view in full), "their mask is full"
    for view in views:
        far, near = view.size < 180, view.size > 300
        assert view.words in (("a far away ", "very small ") if far else ("zoomed in ", "close up ") if near else ("",))
        assert (0 <= view.top <= 300 - view.size) if not near else (300 - view.size <= view.top <= 0)


def test_a_source_of_views_repeats_and_grows():
    first, more = (
        ScaledImages(Pictures(), 4, SIDE, FACTOR, seed=0),
        ScaledImages(Pictures(5), 4, SIDE, FACTOR, seed=0),
    )
    assert len(first) == 12 and first.views == more.views[:12], "more pictures change no view"
    assert len({first.content_hash(index) for index in range(12)}) == 12
    assert first.image(7).shape == (3, SIDE, SIDE)
    assert len(first.label_maps([torch.zeros(8, 10, dtype=torch.uint8)] * 3)) == 12


def test_examples_say_their_size_and_where_the_loss_counts():
    labels = torch.tensor([[0, NOWHERE], [2, NOWHERE]], dtype=torch.uint8)
    example = TrainingExample(
        torch.zeros(4, 2, 2),
        torch.zeros(4, 2, 2),
        0,
        labels,
        torch.zeros(3),
        "a photo of a <1:0>",
        9,
        5,
        (64, 64, 0, 0),
    )
    alter = pickle.loads(pickle.dumps(ScaledViewTransform(["", "", "", "", "", "very small "], variants=4)))
    altered = alter(example, torch_generator(0))
    assert altered.prompt == "very small photo of a <1:0>" and altered.image_id == 1
    assert altered.loss_region.tolist() == [[1, 0], [1, 0]]
    assert alter(TrainingExample(**{**vars(example), "image_id": 0}), torch_generator(0)).prompt == example.prompt
