"""Attention of parts on parts: by hand, and as laws."""

from __future__ import annotations

import pytest
import torch

from partcraft_lit.metrics.leakage import AttentionLeakage, leakage_matrix


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


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"need part_ids \(1, 2\) and label_map \(1, 4, 4\); got \(1, 3\)"):
        leakage_matrix(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3), torch.zeros(1, 4, 4), 1)


def test_the_metric_is_the_matrix_of_all_batches_and_processes(two_processes) -> None:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(7, 4, 6, 6, generator=generator)
    part_ids = torch.randint(-1, 4, (7, 4), generator=generator)
    label_map = torch.randint(0, 4, (7, 6, 6), generator=generator)
    expected = leakage_matrix(maps, part_ids, label_map, num_parts=3)

    def work(rank, step=2):
        metric = AttentionLeakage(3, ["background", "head", "wing", "tail"])
        for piece in torch.arange(rank, 7, step).split(2):
            metric.update(maps[piece], part_ids[piece], label_map[piece])
        return metric.compute()

    for found in (work(0, 1), *two_processes(work)):
        torch.testing.assert_close(found["matrix"], expected)
        torch.testing.assert_close(found["part/wing"], expected[2, 2])
        torch.testing.assert_close(found["without_background"], expected.diagonal()[1:].mean())


def test_a_part_that_was_never_named_has_no_number() -> None:
    metric = AttentionLeakage(1)
    metric.update(torch.ones(1, 1, 2, 2), torch.ones(1, 1), torch.tensor([[[0, 1], [1, 1]]]))
    found = metric.compute()
    assert found["part/0"].isnan() and float(found["all"]) == float(found["part/1"]) == 0.75
    with pytest.raises(ValueError, match="name all 2 parts"):
        AttentionLeakage(1, ["head"])
