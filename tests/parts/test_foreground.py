from __future__ import annotations

import pytest
import torch

from partcraft_lit.parts.foreground import PatchPlaces, choose_foreground, inwardness


def grids(*maps: list[list[int]]) -> tuple[torch.Tensor, PatchPlaces]:
    tensors = [torch.tensor(rows) for rows in maps]
    return torch.cat([tensor.flatten() for tensor in tensors]), places_of(*(tensor.shape for tensor in tensors))


def places_of(*shapes: tuple[int, int], inward: torch.Tensor | None = None) -> PatchPlaces:
    """All cells of one grid per image, row by row."""
    cells = [torch.arange(height * width) for height, width in shapes]
    counts = torch.tensor([len(numbers) for numbers in cells])
    heights, widths = torch.tensor([list(shape) for shape in shapes]).repeat_interleave(counts, dim=0).unbind(dim=1)
    images = torch.arange(len(shapes)).repeat_interleave(counts)
    return PatchPlaces.of_cells(torch.cat(cells), heights, widths, images, inward)


CENTRED = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_places_by_hand():
    places = places_of((3, 4))
    assert places.image.tolist() == [0] * 12
    assert places.rows.view(3, 4)[:, 0].tolist() == pytest.approx([-2 / 3, 0, 2 / 3])
    assert places.cols.view(3, 4)[0].tolist() == pytest.approx([-0.75, -0.25, 0.25, 0.75])
    assert places.border.view(3, 4).tolist() == [[True] * 4, [True, False, False, True], [True] * 4]
    assert places.central.view(3, 4).tolist() == [[False] * 4, [False, True, True, False], [False] * 4]


@pytest.mark.parametrize("swap", [False, True])
def test_the_middle_is_the_object_whichever_its_number(swap):
    labels, places = grids(CENTRED, CENTRED)
    choice = choose_foreground(1 - labels if swap else labels, places, 2)
    assert choice.is_foreground.tolist() == [swap, not swap]
    assert choice.confidence == pytest.approx(1.0)
    assert choice.area == pytest.approx(0.25)
    object_evidence = choice.evidence[0 if swap else 1]
    assert (object_evidence.border, object_evidence.centre, object_evidence.contrast) == (0.0, 1.0, 1.0)


def test_confidence_by_hand():
    # of 4 central patches 3 are of cluster 1, of 12 on the border 3: J = 3/4 - 3/12
    labels, places = grids([[1, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]])
    choice = choose_foreground(labels, places, 2)
    assert choice.is_foreground.tolist() == [False, True]
    assert choice.confidence == pytest.approx(0.5)


def test_clusters_that_ignore_place_give_no_confidence():
    generator = torch.Generator().manual_seed(0)
    places = places_of(*[(16, 16)] * 100)
    labels = torch.randint(0, 2, (25_600,), generator=generator)
    assert choose_foreground(labels, places, 2).confidence < 0.03


def test_many_clusters_are_merged_into_two_sides():
    labels, places = grids([[0, 0, 0, 2], [0, 1, 3, 2], [0, 1, 3, 2], [0, 0, 2, 2]])
    choice = choose_foreground(labels, places, 4)
    assert choice.is_foreground.tolist() == [False, True, False, True]
    assert choice.confidence == pytest.approx(1.0)


def test_a_group_that_covers_nearly_everything_is_doubted():
    rows = [[1] * 16 for _ in range(16)]
    rows[0] = rows[-1] = [0] * 16
    for row in rows:
        row[0] = row[-1] = 0
    labels, places = grids(rows)  # 77 % of the image
    choice = choose_foreground(labels, places, 2)
    assert choice.is_foreground.tolist() == [False, True]
    assert choice.confidence == pytest.approx((1 - 196 / 256) / 0.25)


@pytest.mark.parametrize("k", [2, 3, 6])
def test_both_sides_are_never_empty(k):
    labels = torch.zeros(64, dtype=torch.long)
    labels[:k] = torch.arange(k)
    choice = choose_foreground(labels, places_of((8, 8)), k)
    assert 0 < int(choice.is_foreground.sum()) < k


def test_one_cluster_is_all_foreground_without_confidence():
    choice = choose_foreground(torch.zeros(16, dtype=torch.long), places_of((4, 4)), 1)
    assert choice.is_foreground.tolist() == [True]
    assert choice.confidence == 0


def test_compactness_decides_between_clusters_that_are_equally_central():
    # Both clusters have 2 of 4 central patches and 6 of 12 on the border; those of 1 lie in one half.
    blob = [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    board = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    compact = choose_foreground(*grids(blob), 2).evidence[1].compactness
    scattered = choose_foreground(*grids(board), 2).evidence[1].compactness
    assert compact > 0.2 > scattered


def test_inwardness_by_hand():
    # On white, a grey frame with a white court: to the court one has to step down and up again.
    pixels = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    pixels[:, 6:26, 6:26] = 102
    pixels[:, 12:20, 12:20] = 255
    (found,) = inwardness([pixels], [(32, 32)])
    assert float(found[0, 0]) == float(found[4, 16]) == 0
    assert float(found[8, 8]) == pytest.approx(0.5, abs=1e-5)
    assert float(found[16, 16]) == pytest.approx(1.0)
    assert inwardness([pixels], [(16, 16)])[0].shape == (16, 16)


def test_a_slow_gradient_is_near_the_border_and_a_plain_picture_is_all_border():
    ramp = torch.linspace(0, 250, 64).to(torch.uint8).expand(3, 64, 64).clone()
    ramp[:, 28:36, 28:36] = torch.tensor([250, 0, 0], dtype=torch.uint8)[:, None, None]
    plain = torch.full((3, 20, 50), 7, dtype=torch.uint8)
    found, nothing = inwardness([ramp, plain], [(64, 64), (8, 20)])
    assert float(found[20, 20]) < 0.25 < 0.9 < float(found[32, 32])
    assert nothing.shape == (8, 20)
    assert float(nothing.max()) == 0


def test_many_clusters_are_split_by_inwardness_where_it_is_known():
    # cluster 2 is background in the middle: only the way to the border tells
    pixels = torch.full((3, 32, 32), 200, dtype=torch.uint8)
    pixels[:, 8:24, 8:16] = 0
    labels = torch.zeros(32, 32, dtype=torch.long)
    labels[8:24, 8:16] = 1
    labels[8:24, 16:24] = 2
    choice = choose_foreground(
        labels.flatten(), places_of((32, 32), inward=inwardness([pixels], [(32, 32)])[0].flatten()), 3
    )
    assert choice.is_foreground.tolist() == [False, True, False]
    assert choice.separation > 0.8
    unknown = choose_foreground(labels.flatten(), places_of((32, 32)), 3)
    assert unknown.is_foreground.tolist() == [False, True, True]
    assert unknown.separation != unknown.separation
