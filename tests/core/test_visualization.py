"""Images: what the pixels are, by hand on tiny images, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from partcraft_lit.core import visualization


def flat(height: int, width: int, value: int = 100) -> Tensor:
    return torch.full((3, height, width), value, dtype=torch.uint8)


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("n", [1, 2, 6, 8, 9, 40])
def test_part_colors_are_distinct_and_start_with_a_neutral_background(n: int) -> None:
    colors = visualization.part_colors(n)
    assert colors.shape == (n, 3)
    assert colors.dtype == torch.uint8
    assert len({tuple(row) for row in colors.tolist()}) == n
    assert int(colors[0].max()) - int(colors[0].min()) < 24  # grey
    assert torch.equal(colors, visualization.part_colors(n + 3)[:n])  # a part keeps its colour when M grows


def test_part_colors_needs_a_background() -> None:
    with pytest.raises(ValueError, match=r"at least 1; got 0"):
        visualization.part_colors(0)


def simulate_deuteranopia(colors: Tensor) -> Tensor:
    """Machado et al. 2009, severity 1.0, on linear RGB."""
    unit = colors.double() / 255
    linear = torch.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        dtype=torch.double,
    )
    return linear @ matrix.T


def test_first_parts_stay_apart_for_colour_blind_readers() -> None:
    seen = simulate_deuteranopia(visualization.part_colors(8))
    distance = torch.cdist(seen, seen) + torch.eye(8).double() * 9
    # Plain red (200, 60, 60) and green (60, 150, 60), of similar brightness, come out at 0.07 by the same measure.
    assert distance.min() > 0.1


def test_hex_color() -> None:
    assert visualization.hex_color([0, 114, 178]) == "#0072b2"


def test_grid_places_images_row_by_row() -> None:
    sheet = visualization.grid([flat(2, 2, value) for value in (10, 20, 30)], columns=2, pad=1, background=(0, 0, 0))
    assert sheet.tolist()[0] == [
        [10, 10, 0, 20, 20],
        [10, 10, 0, 20, 20],
        [0] * 5,
        [30, 30, 0, 0, 0],
        [30, 30, 0, 0, 0],
    ]


def test_grid_centres_images_of_unlike_sizes_and_takes_a_batch() -> None:
    sheet = visualization.grid([flat(4, 2), flat(2, 4)], columns=2, pad=0)
    assert sheet.shape == (3, 4, 8)
    assert (sheet[:, :, 1:3] == 100).all()
    assert (sheet[:, 1:3, 4:] == 100).all()
    assert int((sheet == 100).sum()) == 3 * 16
    assert visualization.grid(torch.stack([flat(4, 4)] * 6), columns=3, pad=2).shape == (3, 10, 16)


def test_empty_grid_and_stack_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        visualization.grid([])
    with pytest.raises(ValueError, match="at least one image"):
        visualization.stack([])


def test_stack_keeps_every_pixel() -> None:
    top, bottom = noise(3, 5), noise(4, 2, seed=1)
    stacked = visualization.stack([top, bottom], pad=2, border=1)
    assert stacked.shape == (3, 11, 7)
    assert torch.equal(stacked[:, 1:4, 1:6], top)
    assert torch.equal(stacked[:, 6:10, 1:3], bottom)


def test_overlay_without_outline_is_the_mix_of_colour_and_image() -> None:
    label_map = torch.tensor([[0, 1]], dtype=torch.uint8)
    colors = torch.tensor([[0, 0, 0], [200, 0, 100]], dtype=torch.uint8)
    tinted = visualization.overlay_parts(flat(2, 4), label_map, colors, opacity=0.5, outline=False, smooth=False)
    assert (tinted[:, :, :2] == 100).all()  # the background is left alone
    assert tinted[:, 0, 3].tolist() == [150, 50, 100]


@pytest.mark.parametrize("gray", [True, False])
def test_overlay_shows_a_part_in_its_own_colour_over_grey(gray: bool) -> None:
    image = flat(2, 2, 0)
    image[0] = 90  # red
    label_map = torch.tensor([[1, 0]], dtype=torch.uint8)
    colors = torch.tensor([[0, 0, 0], [0, 0, 200]], dtype=torch.uint8)
    tinted = visualization.overlay_parts(image, label_map, colors, 0.5, outline=False, smooth=False, gray=gray)
    assert tinted[:, 0, 0].tolist() == ([15, 15, 115] if gray else [45, 0, 100])
    assert tinted[:, 0, 1].tolist() == [90, 0, 0]  # the background keeps its colours


def test_overlay_draws_outlines_and_leaves_its_input_alone() -> None:
    image = flat(8, 8)
    before = image.clone()
    label_map = torch.zeros(8, 8, dtype=torch.uint8)
    label_map[:, 4:] = 1
    tinted = visualization.overlay_parts(image, label_map, visualization.part_colors(2), opacity=0)
    assert torch.equal(image, before)
    assert (tinted[:, :, 4] > 200).all()
    assert (tinted[:, :, :4] == 100).all()
    assert (tinted[:, :, 5:] == 100).all()


@pytest.mark.parametrize("smooth", [True, False])
def test_label_maps_of_any_aspect_are_resized(smooth: bool) -> None:
    label_map = torch.tensor([[0, 0, 2], [1, 1, 2]], dtype=torch.uint8)
    labels = visualization.resize_labels(label_map, (60, 31), 3, smooth)
    assert labels.shape == (60, 31)
    assert [int(labels[0, 0]), int(labels[-1, 0]), int(labels[0, -1])] == [0, 1, 2]


@pytest.mark.parametrize("size", [(4, 5), (8, 8), (12, 9), (16, 24), (37, 50)])
@pytest.mark.parametrize("smooth", [True, False])
def test_resizing_labels_commutes_with_mirroring(smooth: bool, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        labels = torch.randint(0, 4, (8, 10), generator=generator)
        resized = visualization.resize_labels(labels, size, 4, smooth)
        for axes in ((0,), (1,)):
            assert torch.equal(visualization.resize_labels(labels.flip(axes), size, 4, smooth), resized.flip(axes))


def test_label_maps_beyond_the_colours_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must hold 0\.\.\.1, one colour each; got \[0, 3\]"):
        visualization.overlay_parts(flat(4, 4), torch.tensor([[0, 3]]), visualization.part_colors(2))
    with pytest.raises(ValueError, match=r"\(height, width\), got \(1, 2, 2\)"):
        visualization.resize_labels(torch.zeros(1, 2, 2), (4, 4), 2)


def test_highlight_keeps_the_part_and_fades_the_rest() -> None:
    image = noise(40, 40)
    label_map = torch.zeros(40, 40, dtype=torch.uint8)
    label_map[:, 20:] = 1
    shown = visualization.highlight_part(image, label_map, 1, visualization.part_colors(2), dim=0.9)
    assert torch.equal(shown[:, :, 24:], image[:, :, 24:])
    assert (shown[:, :, :16].float() - 236).abs().max() < 26
    assert shown[:, 5, 20].tolist() == visualization.part_colors(2)[1].tolist()


def test_highlight_of_an_absent_part_fades_everything() -> None:
    shown = visualization.highlight_part(
        noise(8, 8), torch.zeros(2, 2, dtype=torch.uint8), 2, visualization.part_colors(3), dim=1
    )
    assert (shown == 236).all()


def test_heat_is_brightest_where_the_map_is_largest() -> None:
    heat = torch.zeros(4, 4)
    heat[1, 2] = 7.0
    shown = visualization.heat_overlay(flat(32, 32), heat, opacity=1.0).float().mean(dim=0)
    row, column = divmod(int(shown.argmax()), 32)
    assert 8 <= row < 16
    assert 16 <= column < 24
    assert shown[28, 2] < 60  # the image, darkened


def test_heat_survives_an_empty_map_and_a_common_scale() -> None:
    assert visualization.heat_overlay(flat(8, 8), torch.full((2, 2), float("nan"))).shape == (3, 8, 8)
    half = visualization.heat_overlay(flat(8, 8), torch.full((2, 2), 0.5), maximum=1.0).float().mean()
    full = visualization.heat_overlay(flat(8, 8), torch.full((2, 2), 0.5)).float().mean()
    assert half < full


@pytest.mark.parametrize("position", ["above", "below"])
def test_label_adds_a_readable_strip(position: str) -> None:
    image = noise(20, 60)
    labelled = visualization.label(image, "head 3\nwing", position=position, size=10)  # type: ignore[arg-type]
    assert labelled.shape == (3, 50, 60)
    assert torch.equal(labelled[:, 30:] if position == "above" else labelled[:, :20], image)
    strip = labelled[:, :30] if position == "above" else labelled[:, 20:]
    assert strip.min() < 110
    assert strip.max() == 255


def test_long_labels_are_cut_with_dots_to_the_width() -> None:
    font = visualization._font(12)
    cut = visualization._fit("a very long name of a part", font, 60)
    assert cut.endswith("...")
    assert font.getlength(cut) <= 60
    assert visualization._fit("head", font, 60) == "head"


def test_legend_breaks_lines() -> None:
    names = ["background", "head", "body", "wing"]
    wide = visualization.legend(names, visualization.part_colors(4), width=600)
    narrow = visualization.legend(names, visualization.part_colors(4), width=110)
    assert wide.shape[2] == 600
    assert narrow.shape[2] == 110
    assert narrow.shape[1] > 2 * wide.shape[1]


def test_upscale_keeps_the_aspect() -> None:
    assert visualization.upscale(flat(10, 5), 40).shape == (3, 40, 20)
    assert torch.equal(visualization.upscale(noise(2, 2), 8, "nearest")[:, ::4, ::4], noise(2, 2))
    assert visualization.fit_square(flat(10, 5, 7), 20, background=(255, 255, 255))[0, 10].tolist()[:6] == [255] * 5 + [
        7
    ]


def test_png_round_trip_with_metadata(tmp_path: Path) -> None:
    image = noise(7, 9)
    path = visualization.save_png(tmp_path / "new" / "a.png", image, {"prompt": "a photo of a <head:3> ∆", "seed": 12})
    with Image.open(path) as opened:
        assert opened.info["prompt"] == "a photo of a <head:3> ∆"
        assert opened.info["seed"] == "12"
        assert torch.equal(visualization.from_pil(opened), image)
    assert [item.name for item in path.parent.iterdir()] == ["a.png"]


def test_jpeg_is_close(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(visualization.encode_jpeg(flat(16, 16, 77)))
    with Image.open(path) as opened:
        assert (visualization.from_pil(opened).float() - 77).abs().max() <= 2


def test_a_large_noisy_jpeg_can_be_written() -> None:
    assert len(visualization.encode_jpeg(noise(300, 1800), quality=90)) > 500_000


@pytest.mark.parametrize("bad", [torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8)])
def test_other_tensors_are_refused(bad: Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(3, height, width\) uint8, got"):
        visualization.grid([bad])


def test_captions_are_broken_between_words_into_equally_many_lines() -> None:
    prompt = "a photo of a <background:0> <head:2> <wing:19> <body:7> <tail:9> <legs:14>"
    long, short = visualization.wrapped([prompt, "a bird"], width=160, size=11)
    assert long.split() == prompt.split()
    assert 1 < len(long.split("\n")) == len(short.split("\n"))
    assert (
        visualization.label(flat(4, 160), long, size=11).shape
        == visualization.label(flat(4, 160), short, size=11).shape
    )
    assert visualization.wrapped(["unbreakable" * 9, ""], width=20)[0].strip() == "unbreakable" * 9
