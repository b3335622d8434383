from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from attention_cases import NUM_PARTS, check_laws, check_precision, make_case, perfect_case
from torch.testing import assert_close

from partcraft_lit.losses.attention_iou import (
    bind_loss,
    gaussian_kernel,
    iou_attention_loss,
    min_max,
    pair_mean,
    separate_loss,
    smooth_maps,
    soft_iou,
)

# Centre, edge and corner of the two kernels: exp(-d^2 / 2 sigma^2) and exp(-(d / 2 sigma)^2) at sigma = 0.5, over sums.
KERNELS = {"paper": (0.6193, 0.0838, 0.0113), "released": (0.3319, 0.1221, 0.0449)}


def slow_smooth(image, kernel):
    """One map, place by place, reflected without the border itself."""
    weights = gaussian_kernel(kernel).double().numpy()
    padded = np.pad(image, 1, mode="reflect")
    height, width = image.shape
    return np.array([[(padded[y : y + 3, x : x + 3] * weights).sum() for x in range(width)] for y in range(height)])


def slow_min_max(image):
    return (image - image.min()) / (image.max() - image.min() + 1e-8)


def slow_iou(first, second, smooth=1.0):
    intersection = (first * second).sum()
    return (intersection + smooth) / (first.sum() + second.sum() - intersection + smooth)


def random_maps(seed=0, count=3, size=5, dtype=torch.float32):
    return torch.rand(2, count, size, size, generator=torch.Generator().manual_seed(seed), dtype=dtype) / 10


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernels_by_hand(kernel):
    weights = gaussian_kernel(kernel)
    centre, edge, corner = KERNELS[kernel]
    expected = torch.tensor([[corner, edge, corner], [edge, centre, edge], [corner, edge, corner]])
    assert_close(weights, expected, rtol=0, atol=6e-5)
    assert_close(weights.sum(), torch.tensor(1.0))


@pytest.mark.parametrize("kernel", ["paper", "released", "none"])
def test_smoothing_is_the_slow_definition_and_keeps_constants(kernel):
    maps = random_maps()
    expected = torch.tensor(
        np.array([[slow_smooth(one, kernel) for one in sample] for sample in maps.double().numpy()])
    )
    assert_close(smooth_maps(maps, kernel).double(), expected, rtol=1e-5, atol=1e-7)
    assert_close(smooth_maps(torch.full((1, 2, 4, 4), 0.3), kernel), torch.full((1, 2, 4, 4), 0.3))


def test_min_max_by_hand():
    maps = torch.tensor([[[[0.1, 0.2], [0.3, 0.5]], [[0.2, 0.2], [0.2, 0.2]]]])
    expected = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    assert_close(min_max(maps), expected, rtol=0, atol=1e-6)


def test_soft_iou_by_hand():
    first, second = torch.tensor([[1.0, 1.0, 0.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0, 0.5]])
    assert_close(soft_iou(first, second, smooth=0.0), torch.tensor(1 / 3.5))
    assert_close(soft_iou(first, second), torch.tensor(2 / 4.5))
    assert_close(soft_iou(first, first), torch.tensor(1.0))


@pytest.mark.parametrize("kernel", ["paper", "released"])
def test_bind_and_separate_are_the_slow_definition(kernel):
    modifiers, nouns = random_maps(0), random_maps(1)
    used = torch.tensor([[True, True, True], [True, False, True]])
    bind, separate = bind_loss(modifiers, nouns, kernel), separate_loss(nouns, used, kernel)
    for b in range(2):
        smooth = [slow_smooth(slow_min_max(one), kernel) for one in modifiers[b].double().numpy()]
        square = [slow_smooth(slow_min_max(one), kernel) ** 2 for one in nouns[b].double().numpy()]
        for n in range(3):
            assert float(bind[b, n]) == pytest.approx(1 - slow_iou(square[n], smooth[n]), rel=1e-5)
        pairs = [(i, j) for i in range(3) for j in range(i + 1, 3) if used[b, i] and used[b, j]]
        expected = np.mean([slow_iou(square[i], square[j]) for i, j in pairs])
        assert float(separate[b]) == pytest.approx(expected, rel=1e-5)


def test_bind_is_zero_and_separate_is_least_at_the_perfect_answer():
    left = torch.zeros(1, 1, 8, 8)
    left[..., :4] = 0.3
    assert_close(bind_loss(left, left * 2, "none"), torch.zeros(1, 1))
    both, used = torch.cat([left, left.flip(-1)], dim=1), torch.ones(1, 2, dtype=torch.bool)
    assert_close(separate_loss(both, used, "none", smooth=0.0), torch.zeros(1))
    assert_close(separate_loss(both, used, "none"), torch.tensor([1 / 65]))  # larger maps are better: strengthen
    assert_close(separate_loss(torch.cat([left, left], dim=1), used, "none"), torch.ones(1))


def test_gradients_flow_where_the_paper_lets_them():
    modifiers, nouns = (random_maps(seed).requires_grad_() for seed in (0, 1))
    bind_loss(modifiers, nouns).sum().backward()
    assert nouns.grad is None and modifiers.grad.abs().sum() > 0
    separate_loss(nouns, torch.ones(2, 3, dtype=torch.bool)).sum().backward()
    assert (nouns.grad.abs().sum(dim=(2, 3)) > 0).all()


def test_gradcheck_of_bind_and_separate():
    modifiers = random_maps(0, size=3, dtype=torch.float64).requires_grad_()
    nouns = random_maps(1, size=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda maps: bind_loss(maps, nouns), (modifiers,))
    used = torch.tensor([[True, True, True], [True, False, True]])
    assert torch.autograd.gradcheck(lambda maps: separate_loss(maps, used), (nouns.requires_grad_(),))


def test_a_mean_over_pairs_by_hand():
    values = torch.arange(9.0).view(1, 3, 3).expand(2, 3, 3)
    used = torch.tensor([[True, True, True], [True, False, False]])
    assert_close(pair_mean(values, used), torch.tensor([(1.0 + 2.0 + 5.0) / 3, 0.0]))


# ------------------------------------------------------------------------------------------- the loss with masks


def slow_mask_loss(maps, part_ids, labels, kernel, separate):
    maps, part_ids, labels = maps.double().numpy(), part_ids.numpy(), labels.numpy()
    result = []
    for sample, ids, label in zip(maps, part_ids, labels, strict=True):
        parts = [part for part in sorted(set(ids.tolist()) - {-1}) if (label == part).any()]
        smooth = [slow_smooth(slow_min_max(sample[ids == part].sum(axis=0)), kernel) for part in parts]
        missed = [1 - slow_iou((label == part).astype(float), one) for part, one in zip(parts, smooth, strict=True)]
        crossed = [slow_iou(a**2, b**2) for i, a in enumerate(smooth) for b in smooth[i + 1 :]]
        result.append((np.mean(missed) if parts else 0.0) + separate * (np.mean(crossed) if crossed else 0.0))
    return torch.tensor(result)


@pytest.mark.parametrize(("kernel", "separate"), [("none", 0.0), ("released", 0.5), ("paper", 1.0)])
def test_the_loss_with_masks_is_the_slow_definition(kernel, separate):
    case = make_case()
    loss = iou_attention_loss(*case, NUM_PARTS, kernel, separate)
    assert_close(loss.double(), slow_mask_loss(*case, kernel, separate), rtol=1e-5, atol=1e-6)


def test_the_loss_with_masks_is_zero_at_the_perfect_answer():
    assert_close(iou_attention_loss(*perfect_case(), NUM_PARTS), torch.zeros(4), rtol=0, atol=1e-6)
    again = iou_attention_loss(*perfect_case(), NUM_PARTS, separate=1.0, smooth=0.0)
    assert_close(again, torch.zeros(4), rtol=0, atol=1e-6)


def test_the_loss_with_masks_by_hand():
    # The map, min-max: (1, 0.5); the mask (1, 0): (1 + 1) / (1.5 + 1 - 1 + 1).
    maps = torch.tensor([[[[0.3, 0.2, 0.1]]]])
    labels = torch.tensor([[[1, 0, 0]]], dtype=torch.uint8)
    assert_close(iou_attention_loss(maps, torch.tensor([[1]]), labels, 1), torch.tensor([1 - 2 / 2.5]))


@pytest.mark.parametrize("options", [{}, {"kernel": "released", "separate": 0.5}])
def test_laws(options):
    check_laws(functools.partial(iou_attention_loss, **options))
    check_precision(functools.partial(iou_attention_loss, **options))


def test_messages():
    with pytest.raises(ValueError, match=r"kernel must be one of .* got 'sharp'"):
        iou_attention_loss(*make_case(), NUM_PARTS, kernel="sharp")
    assert math.isclose(float(gaussian_kernel("none").sum()), 1.0)
