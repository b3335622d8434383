from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.world.patch_network import PatchNetwork
from partcraft_lit.world.pretrain.patch_features import (
    FeatureRecipe,
    affinity,
    apply_affine,
    draw_places,
    equal_assignment,
    invert_affine,
    random_affine,
    recolor,
    sample,
    surface_contrast,
    train_patch_features,
    warp,
)
from partcraft_lit.world.zoo.scenes import PretrainingScenes
from pretraining import loop_settings

RECIPE = FeatureRecipe(pool=6, points=24, dim=8, prototypes=(6, 4), contrast_from=2)
SETTINGS = loop_settings(steps=4, batch_size=3, lr=1e-3, warmup=1)


def test_affine_maps_are_inverse():
    affine = random_affine(5, torch_generator(0, "test"))
    places = torch.rand(5, 7, 2) * 2 - 1
    assert_close(apply_affine(invert_affine(affine), apply_affine(affine, places)), places, atol=1e-5, rtol=0)


def test_places_of_view_and_image_show_the_same():
    # a smooth image: its value at a place is a function of the place alone
    y, x = torch.meshgrid(torch.linspace(-1, 1, 64), torch.linspace(-1, 1, 64), indexing="ij")
    images = torch.stack([x, y, x * y])[None].expand(4, -1, -1, -1) / 2 + 0.5
    affine = random_affine(4, torch_generator(1, "test"))
    places = torch.rand(4, 50, 2, generator=torch_generator(2, "test")) * 1.4 - 0.7
    seen = apply_affine(invert_affine(affine), places)
    inside = seen.abs().amax(dim=-1) < 0.9
    assert inside.sum() > 50
    assert_close(sample(warp(images, affine), seen)[inside], sample(images, places)[inside], atol=0.02, rtol=0)


def test_equal_assignment_is_equal():
    plan = equal_assignment(torch.rand(600, 5, generator=torch_generator(0, "scores")), sharpness=0.1, rounds=50)
    assert_close(plan.sum(dim=1), torch.ones(600))
    assert_close(plan.sum(dim=0), torch.full((5,), 120.0), atol=0.5, rtol=0)
    assert bool((plan >= 0).all())


def test_affinity_knows_colour_and_place():
    colors = torch.tensor([[[0.0], [0.0], [1.0], [0.0]]])
    places = torch.tensor([[[0.0, 0], [0.1, 0], [0.1, 0], [0.9, 0]]])
    weights = affinity(colors, places, color_reach=0.1, place_reach=0.2)[0]
    assert_close(weights.sum(dim=1), torch.ones(4))
    assert weights[0, 1] > 0.4  # near, same colour
    assert weights[0, 2] < 1e-6  # near, another colour
    assert weights[0, 3] < 1e-3  # far, same colour


def test_contrast_is_small_where_surfaces_are_told_apart():
    like = torch.block_diag(torch.ones(3, 3), torch.ones(3, 3))[None]
    near, valid = torch.ones(1, 6, 6), torch.ones(1, 6, dtype=torch.bool)
    told = F.one_hot(torch.tensor([[0, 0, 0, 1, 1, 1]]), 2).float()
    same = torch.ones(1, 6, 2) / 2**0.5
    good = surface_contrast(told, told, like, near, valid, 0.2)
    bad = surface_contrast(same, same, like, near, valid, 0.2)
    # by hand: one attracted place against three rivals of equal or of zero similarity
    assert float(bad) == pytest.approx(1.386294, abs=1e-4)
    assert float(good) == pytest.approx(float(torch.log(1 + 3 * torch.exp(torch.tensor(-5.0)))), abs=1e-4)


def test_places_are_drawn_where_something_is():
    images = torch.full((2, 3, 32, 32), 0.5)
    images[:, :, 12:20, 12:20] = 1.0
    places = draw_places(images, 400, 0.1, torch_generator(0, "places"))
    assert places.shape == (2, 400, 2)
    assert float(places.abs().max()) <= 1
    assert float((places.abs().amax(dim=-1) < 0.32).float().mean()) > 0.4  # 10 % of the area


def test_recolouring_stays_in_range_and_changes_colours():
    images = torch.rand(8, 3, 16, 16, generator=torch_generator(0, "images"))
    changed = recolor(images, torch_generator(1, "images"))
    assert float(changed.min()) >= 0
    assert float(changed.max()) <= 1
    assert (changed != images).flatten(1).any(dim=1).sum() >= 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("features")
    return train_patch_features(PretrainingScenes(seed=1), SETTINGS, folder, lambda line: None, RECIPE)


def test_training_changes_every_weight(trained):
    torch.manual_seed(1)
    start = PatchNetwork(RECIPE.dim).state_dict()
    after = trained.state_dict()
    assert all(bool((after[name] != value).any()) for name, value in start.items() if value.ndim > 1)
    assert all(bool(torch.isfinite(value).all()) for value in after.values())


def test_training_is_a_function_of_its_settings(trained, tmp_path):
    # in the middle of a run only the loop's own checkpoint counts: see test_loop
    again = train_patch_features(PretrainingScenes(seed=1), SETTINGS, tmp_path, lambda line: None, RECIPE)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in trained.state_dict().items())
