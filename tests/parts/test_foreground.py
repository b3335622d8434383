from __future__ import annotations

import pytest
import torch

from partcraft_lit.parts.foreground import PatchPlaces, choose_foreground


def grids(*maps: list[list[int]]) -> tuple[torch.Tensor, PatchPlaces]:
    tensors = [torch.tensor(rows) for rows in maps]
    places = [PatchPlaces.of_grid(*tensor.shape, index) for index, tensor in enumerate(tensors)]
    return torch.cat([tensor.flatten() for tensor in tensors]), PatchPlaces.concatenate(places)


CENTRED = [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_places_by_hand():
    places = PatchPlaces.of_grid(3, 4, image=5)
    assert places.image.tolist() == [5] * 12
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
    places = PatchPlaces.concatenate([PatchPlaces.of_grid(16, 16, index) for index in range(100)])
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
    choice = choose_foreground(labels, PatchPlaces.of_grid(8, 8, 0), k)
    assert 0 < int(choice.is_foreground.sum()) < k


def test_one_cluster_is_all_foreground_without_confidence():
    choice = choose_foreground(torch.zeros(16, dtype=torch.long), PatchPlaces.of_grid(4, 4, 0), 1)
    assert choice.is_foreground.tolist() == [True]
    assert choice.confidence == 0


def test_compactness_decides_between_clusters_that_are_equally_central():
    # Both clusters have 2 of 4 central patches and 6 of 12 on the border; those of 1 lie in one half.
    blob = [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1]]
    board = [[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    compact = choose_foreground(*grids(blob), 2).evidence[1].compactness
    scattered = choose_foreground(*grids(board), 2).evidence[1].compactness
    assert compact > 0.2 > scattered
