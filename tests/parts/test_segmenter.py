from __future__ import annotations

import numpy as np
import torch
from torch.testing import assert_close

from partcraft_lit.parts.segmenter import Segmenter, absorb_small_components, connected_components


def segmenter(**settings) -> Segmenter:
    """Axis 0 is the background; axes 1 and 2 are the parts."""
    axes = torch.eye(3)
    return Segmenter(torch.zeros(3), axes, torch.tensor([False, True, True]), axes[1:], **settings)


def features(label_map: list[list[int]]) -> torch.Tensor:
    return 3 * torch.eye(3)[torch.tensor(label_map)]


def test_labels_and_means_by_hand():
    label_map = segmenter().label_all([features([[0, 1], [2, 2]])])[0]
    assert label_map.tolist() == [[0, 1], [2, 2]]
    assert label_map.dtype == torch.uint8
    assert_close(segmenter().describe(features([[0, 1], [2, 2]]), label_map), torch.eye(3))


def test_the_mean_of_an_absent_part_is_zero_not_nan():
    means = segmenter().describe(features([[0, 0]]), torch.tensor([[0, 0]]))
    assert means.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]


def test_the_offset_is_taken_off_first():
    moved = segmenter()
    shifted = Segmenter(
        torch.tensor([5.0, 5, 5]), moved.foreground_centroids, moved.is_foreground, moved.part_centroids
    )
    grid = features([[0, 1], [2, 1]])
    assert torch.equal(shifted.label_all([grid + 5])[0], moved.label_all([grid])[0])


def test_small_parts_go_to_the_next_nearest_part_or_to_the_background():
    grid = features([[1, 1, 1], [0, 0, 2]])
    assert segmenter(min_cells=2).label_all([grid])[0].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert segmenter(min_cells=4).label_all([grid])[0].tolist() == [[0, 0, 0], [0, 0, 0]]


def test_small_components_take_the_label_around_them():
    grid = features([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [2, 0, 0, 0]])
    cleaned = segmenter(min_component_size=2).label_all([grid])[0].tolist()
    assert cleaned == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]


def test_hash_follows_everything_that_decides_a_label_map():
    same, other = segmenter(), segmenter(min_cells=2)
    flipped = Segmenter(torch.zeros(3), torch.eye(3), torch.tensor([True, False, True]), torch.eye(3)[1:])
    assert same.hash == segmenter().hash
    assert len({same.hash, other.hash, segmenter(min_component_size=2).hash, flipped.hash}) == 4


def test_components_by_hand():
    labels = np.array([[[1, 1, 0], [0, 1, 0], [1, 0, 0]]])
    components = connected_components(labels)[0]
    assert sorted(np.bincount(components.ravel()).tolist()) == [1, 1, 3, 4]
    assert components[0, 0] == components[1, 1]
    assert components[2, 0] != components[1, 1]  # corners do not connect


def test_components_end_with_their_image():
    assert np.unique(connected_components(np.ones((3, 2, 2), dtype=np.int64))).tolist() == [0, 1, 2]


def test_absorbing_keeps_large_components_and_uniform_maps():
    labels = torch.tensor([[[1, 1, 2, 2], [1, 1, 2, 2]]])
    assert torch.equal(absorb_small_components(labels, 3, 4), labels)
    uniform = torch.ones(1, 2, 2, dtype=torch.long)
    assert torch.equal(absorb_small_components(uniform, 3, 9), uniform)


def test_a_component_takes_the_commonest_label_of_its_eight_neighbours():
    labels = torch.tensor([[[0, 0, 2, 2], [0, 1, 2, 2], [2, 2, 2, 2]], [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]]])
    cleaned = absorb_small_components(labels, 3, 2)
    assert cleaned[0].tolist() == [[0, 0, 2, 2], [0, 2, 2, 2], [2, 2, 2, 2]]  # three of label 0, five of label 2
    assert cleaned[1].tolist() == [[0] * 4] * 3


def test_images_labelled_together_are_labelled_as_one_by_one():
    generator = torch.Generator().manual_seed(0)
    sizes = [(5, 6), (3, 9), (5, 6), (5, 6), (3, 9)]  # of two shapes, so that components are absorbed in two groups
    grids = [features(torch.randint(0, 3, size, generator=generator).tolist()) for size in sizes]
    labelling = segmenter(min_component_size=3, min_cells=4)
    together = labelling.label_all(grids)
    assert any(bool((labelling.label_all([grid])[0] != segmenter().label_all([grid])[0]).any()) for grid in grids)
    assert all(torch.equal(found, labelling.label_all([grid])[0]) for found, grid in zip(together, grids, strict=True))
