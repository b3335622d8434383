"""Attention of parts on parts: by hand, and as laws."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.metrics.leakage import leakage_matrix


def test_by_hand() -> None:
    label_map = torch.tensor([[[0, 0], [1, 2]]])
    maps = torch.tensor([[[[3.0, 0.0], [1.0, 0.0]], [[1.0, 1.0], [1.0, 5.0]]]])
    matrix = leakage_matrix(maps, torch.tensor([[1, 2]]), label_map, num_parts=2)
    assert matrix[0].isnan().all()  # no token of the background
    torch.testing.assert_close(matrix[1:], torch.tensor([[0.75, 0.25, 0.0], [0.25, 0.125, 0.625]]).double())


def test_perfect_attention_is_the_identity_and_scale_does_not_matter() -> None:
    label_map = torch.tensor([[0, 1], [2, 2]]).expand(3, 2, 2)
    maps = (
        torch.nn.functional.one_hot(label_map, 3).permute(0, 3, 1, 2)
        * torch.tensor([1.0, 7.0, 0.1])[:, None, None, None]
    )
    matrix = leakage_matrix(maps, torch.arange(3).expand(3, 3), label_map, num_parts=2)
    torch.testing.assert_close(matrix, torch.eye(3).double())


def test_duplicates_are_summed_and_unused_places_ignored() -> None:
    label_map = torch.tensor([[[0, 1]]])
    maps = torch.tensor([[[[1.0, 0.0]], [[0.0, 3.0]], [[9.0, 0.0]]]])
    matrix = leakage_matrix(maps, torch.tensor([[1, 1, -1]]), label_map, num_parts=1)
    torch.testing.assert_close(matrix[1], torch.tensor([0.25, 0.75]).double())


def test_rows_add_to_one_and_follow_a_permutation_of_images() -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(5, 4, 6, 6, generator=generator)
    part_ids = torch.randint(-1, 4, (5, 4), generator=generator)
    label_map = torch.randint(0, 4, (5, 6, 6), generator=generator)
    matrix = leakage_matrix(maps, part_ids, label_map, num_parts=3)
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(4).double())
    order = torch.randperm(5, generator=generator)
    torch.testing.assert_close(leakage_matrix(maps[order], part_ids[order], label_map[order], 3), matrix)


def test_a_part_that_no_prompt_names_has_no_number() -> None:
    label_map = torch.tensor([[[0, 1], [1, 1]]])
    matrix = leakage_matrix(torch.ones(1, 1, 2, 2), torch.ones(1, 1), label_map, num_parts=1)
    assert matrix[0].isnan().all() and matrix[1].tolist() == [0.25, 0.75]


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"need part_ids \(1, 2\) and label_map \(1, 4, 4\); got \(1, 3\)"):
        leakage_matrix(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3), torch.zeros(1, 4, 4), 1)
