"""Attention against masks: by hand, and as laws."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.metrics.attention_iou import AttentionIoU


def score(maps, part_ids, label_map, num_parts=2, **kwargs):
    metric = AttentionIoU(num_parts, **kwargs)
    metric.update(maps, part_ids, label_map)
    return {key: float(value) for key, value in metric.compute().items()}


def test_argmax_by_hand():
    label_map = torch.tensor([[[0, 0], [1, 2]]])
    maps = torch.tensor([[[[0.1, 0.3], [0.9, 0.2]], [[0.2, 0.1], [0.3, 0.8]]]])  # of part 1 and part 2
    # Part 1 takes the right top and left bottom, part 2 the others; one place of each is background.
    found = score(maps, torch.tensor([[1, 2]]), label_map, part_names=["background", "head", "wing"])
    assert found["part/head"] == found["part/wing"] == found["all"] == found["without_background"] == 0.5
    assert found["part/background"] != found["part/background"]  # no token, no number


def test_threshold_by_hand():
    label_map = torch.tensor([[[1, 1], [0, 0]]])
    maps = torch.tensor([[[[4.0, 1.9], [2.0, 0.0]]]])
    assert score(maps, torch.tensor([[1]]), label_map, 1, rule="threshold")["part/1"] == pytest.approx(1 / 3)
    assert score(maps, torch.tensor([[1]]), label_map, 1, rule="threshold", threshold=0.4)["part/1"] == 2 / 3


@pytest.mark.parametrize("rule", ["argmax", "threshold"])
def test_perfect_attention_scores_one_at_any_scale(rule):
    label_map = torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 2]]])
    maps = F.one_hot(label_map, 3).permute(0, 3, 1, 2) * torch.tensor([0.1, 7.0])[:, None, None, None]
    found = score(maps, torch.arange(3).expand(2, 3), label_map, rule=rule)
    assert set(found.values()) == {1.0}


def test_a_named_part_that_is_nowhere_scores_zero_and_tokens_of_a_part_are_summed():
    label_map = torch.tensor([[[1, 1]]])
    maps = torch.tensor([[[[0.4, 0.0]], [[0.0, 0.4]], [[0.3, 0.3]]]])
    assert score(maps, torch.tensor([[1, 1, 2]]), label_map) | {"part/0": 0} == {
        "all": 1,  # part 2 wins no place and has none: it does not count
        "without_background": 1,
        "part/0": 0,
        "part/1": 1,
        "part/2": pytest.approx(float("nan"), nan_ok=True),
    }
    assert score(maps, torch.tensor([[1, -1, 2]]), label_map)["part/2"] == 0


def test_order_batches_and_processes_do_not_matter(two_processes):
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(7, 4, 5, 5, generator=generator)
    part_ids = torch.randint(-1, 4, (7, 4), generator=generator)
    label_map = torch.randint(0, 4, (7, 5, 5), generator=generator)

    def work(rank, step=2, size=2):
        metric = AttentionIoU(3)
        rows = torch.arange(rank, 7, step)
        for piece in rows.split(size):
            metric.update(maps[piece], part_ids[piece], label_map[piece])
        return metric.compute()

    expected = work(0, 1, 7)
    assert_close(work(0, 1, 3), expected)
    for found in two_processes(work):
        assert_close(found, expected)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="rule must be argmax or threshold"):
        AttentionIoU(2, rule="max")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"name all 3 parts, background first; got \['head'\]"):
        AttentionIoU(2, part_names=["head"])
    with pytest.raises(ValueError, match=r"need part_ids \(1, 2\)"):
        AttentionIoU(2).update(torch.zeros(1, 2, 4, 4), torch.zeros(1, 3), torch.zeros(1, 4, 4))
