from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from partcraft_lit.losses.diffusion import diffusion_loss
from partcraft_lit.losses.region import combine_regions, prompted_region

LABELS = torch.tensor([[[0, 1], [2, 2]], [[1, 1], [0, 255]]], dtype=torch.uint8)


def test_the_union_of_the_prompted_parts_by_hand():
    part_ids = torch.tensor([[2, 0], [1, -1]])
    expected = torch.tensor([[[1, 0], [1, 1]], [[1, 1], [0, 0]]]).float()
    assert torch.equal(prompted_region(LABELS, part_ids, 2, 2), expected)
    large = expected.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    assert torch.equal(prompted_region(LABELS, part_ids, 8, 8), large)


def test_no_token_is_an_empty_region_and_all_parts_are_every_place_that_is_one():
    none = torch.full((2, 3), -1)
    assert not prompted_region(LABELS, none, 2, 2).any()
    assert not prompted_region(LABELS, none[:, :0], 2, 2).any()
    every = torch.arange(3).expand(2, 3)
    assert torch.equal(prompted_region(LABELS, every, 2, 2), (LABELS != 255).float())


def test_two_regions_are_both():
    one, other = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.5, 0.0, 1.0])
    assert torch.equal(combine_regions(one, other), torch.tensor([0.5, 0.0, 0.0]))
    assert combine_regions(None, other) is other and combine_regions(one, None) is one
    assert combine_regions(None, None) is None


def test_the_loss_in_a_region_by_hand():
    pred, target = torch.zeros(1, 2, 2, 2), torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [1.0, 2.0]]])[None]
    region = torch.tensor([[[0.0, 1.0], [0.5, 0.0]]])
    # channel means of the squares: [0.5, 2], [5, 10]
    assert_close(diffusion_loss(pred, target, region=region), torch.tensor([(2 + 2.5) / 4]))
    assert_close(diffusion_loss(pred, target, region=region, region_mean="region"), torch.tensor([2 * 4.5 / 1.5]))
    everywhere = torch.ones(1, 2, 2)
    for mean, factor in (("latents", 1), ("region", 2)):
        masked = diffusion_loss(pred, target, region=everywhere, region_mean=mean)
        assert_close(masked, factor * diffusion_loss(pred, target))
        assert torch.equal(masked, diffusion_loss(pred, target, region=None, region_mean=mean))
        assert diffusion_loss(pred, target, region=0 * everywhere, region_mean=mean) == 0


def test_the_mean_over_a_region_is_the_published_one():
    """The lines of Custom Diffusion's trainer; its mask has one channel, the latents four."""
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 4, 8, 8, generator=generator)
    mask = (torch.rand(2, 1, 8, 8, generator=generator) < 0.5).float()
    published = ((pred - target).square() * mask).sum([1, 2, 3]) / mask.sum([1, 2, 3])
    assert_close(diffusion_loss(pred, target, region=mask[:, 0], region_mean="region"), published)


def test_a_soft_region_of_less_than_one_pixel_is_divided_by_its_sum():
    pred, target = torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 3.0)
    region = torch.tensor([[[0.1, 0.2], [0.0, 0.0]]])
    assert_close(diffusion_loss(pred, target, region=region, region_mean="region"), torch.tensor([9.0]))


def test_break_a_scene_masks_both_sides():
    """A binary region is what multiplying prediction and target by the mask does."""
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 3, 4, 4, generator=generator)
    mask = (torch.rand(2, 4, 4, generator=generator) < 0.5).float()
    masked = diffusion_loss(pred * mask[:, None], target * mask[:, None])
    assert_close(diffusion_loss(pred, target, region=mask), masked)


def test_nothing_outside_the_region_gets_a_gradient():
    pred = torch.randn(1, 2, 2, 2, requires_grad=True, generator=torch.Generator().manual_seed(0))
    region = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    diffusion_loss(pred, torch.zeros(1, 2, 2, 2), region=region, region_mean="region").sum().backward()
    assert torch.equal(pred.grad.abs().sum(dim=1) > 0, region > 0)


def test_what_does_not_fit_is_refused():
    pred = torch.zeros(1, 2, 2, 2)
    with pytest.raises(ValueError, match=r"region must be \(1, 2, 2\), \(B, h, w\), got \(1, 4, 4\)"):
        diffusion_loss(pred, pred, region=torch.ones(1, 4, 4))
    with pytest.raises(ValueError, match=r"region_mean must be one of .* got 'mask'"):
        diffusion_loss(pred, pred, region=torch.ones(1, 2, 2), region_mean="mask")
