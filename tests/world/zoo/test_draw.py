"""Drawing: laws of the images, and masks against an independent implementation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from partcraft_lit.world.zoo.draw import ABSENT_BELOW, POSE_SIZE, Drawing, Pose, draw, visible_parts
from partcraft_lit.world.zoo.looks import COLORS, NUM_PARTS, NUM_SHAPES, TEXTURES
from partcraft_lit.world.zoo.shapes import PLANS, BodyPlan

FAMILIES = pytest.mark.parametrize("family", ["bird", "beast"])
WING = 2


def random_looks(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = (NUM_SHAPES, len(COLORS), len(TEXTURES))
    return torch.stack([torch.randint(size, (count, NUM_PARTS), generator=generator) for size in sizes], dim=2)


def random_poses(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, POSE_SIZE, generator=torch.Generator().manual_seed(seed))


def quiet_pose(count: int = 1) -> Tensor:
    """In the middle of every range: nothing aside, nothing in front, looking to the right."""
    return torch.full((count, POSE_SIZE), 0.5)


@FAMILIES
def test_every_pixel_belongs_to_one_known_part(family):
    drawing = draw(PLANS[family], random_looks(16), random_poses(16))
    assert drawing.images.shape == (16, 3, 64, 64)
    assert drawing.images.dtype == drawing.label_maps.dtype == torch.uint8
    masks = torch.stack([drawing.label_maps == part for part in range(NUM_PARTS + 1)])
    assert bool((masks.sum(dim=0) == 1).all())


@FAMILIES
def test_equal_arguments_give_equal_bytes(family):
    looks, pose = random_looks(8), random_poses(8)
    before = (looks.clone(), pose.clone())
    first, second = (draw(PLANS[family], looks, pose) for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert torch.equal(first.label_maps, second.label_maps)
    assert torch.equal(looks, before[0])
    assert torch.equal(pose, before[1])


@FAMILIES
@pytest.mark.parametrize("size", [64, 50])
def test_a_batch_equals_its_pictures_one_by_one(family, size):
    looks, pose = random_looks(12), random_poses(12)
    together = draw(PLANS[family], looks, pose, size)
    alone = [draw(PLANS[family], looks[i : i + 1], pose[i : i + 1], size) for i in range(12)]
    assert torch.equal(together.images, torch.cat([one.images for one in alone]))
    assert torch.equal(together.label_maps, torch.cat([one.label_maps for one in alone]))


@FAMILIES
def test_pictures_do_not_depend_on_the_resolution(family):
    looks, pose = random_looks(16), random_poses(16)
    small, large = draw(PLANS[family], looks, pose, 64), draw(PLANS[family], looks, pose, 128)
    # a pixel's part is that of its centre, which is a corner of four pixels at the double size
    four = large.label_maps.unfold(1, 2, 2).unfold(2, 2, 2).flatten(3)  # (B, 64, 64, 4)
    assert float((four == small.label_maps[..., None]).any(dim=3).float().mean()) > 0.999
    agree = four.amin(dim=3) == four.amax(dim=3)
    assert float((four[..., 0] == small.label_maps)[agree].float().mean()) > 0.9999
    reduced = F.avg_pool2d(large.images.float(), 2)
    assert float((reduced - small.images).abs().mean()) < 1.5  # of 255
    assert torch.equal(small.visible, large.visible) or float((small.visible != large.visible).float().mean()) < 0.03


@FAMILIES
def test_masks_equal_an_independent_implementation(family):
    plan, size = PLANS[family], 24
    looks, pose = random_looks(3, seed=5), random_poses(3, seed=6)
    pose[:, 28] = 0.9  # nothing in front
    pose[0, 6], pose[1:, 6] = 0.05, 0.9  # the first stands aside
    label_maps = draw(plan, looks, pose, size).label_maps
    for row in range(3):
        for y in range(size):
            for x in range(size):
                expected, margin = part_at(plan, looks[row], pose[row], (x + 0.5) / size - 0.5, (y + 0.5) / size - 0.5)
                if margin > 1e-5:  # on an edge rounding decides
                    assert int(label_maps[row, y, x]) == expected, (row, y, x)


def part_at(plan: BodyPlan, looks: Tensor, pose: Tensor, x: float, y: float) -> tuple[int, float]:
    """Label of one place by plain arithmetic, and how far it is from an edge."""
    u = [float(value) for value in pose]
    side = -1.0 if u[0] < 0.5 else 1.0
    scale, angle, stretch = 0.82 + 0.24 * u[1], -0.2 + 0.4 * u[2], 0.88 + 0.2 * u[7]
    aside = 0.36 if u[6] < 0.1 else 0.0
    x -= -0.05 + 0.1 * u[3] + aside * math.cos(2 * math.pi * u[5])
    y -= -0.05 + 0.1 * u[4] + aside * math.sin(2 * math.pi * u[5])
    x, y = turned(x * side / stretch, y, angle)
    x, y = x / scale, y / scale
    label, margin = 0, 9.0
    for part in plan.order:
        jx, jy = plan.joints[int(looks[plan.body, 0]), part].tolist()
        px, py = turned(x - jx, y - jy, (2 * u[8 + part] - 1) * float(plan.swing[part]))
        size = 0.93 + 0.14 * u[14 + part]
        capsules = [[size * v for v in row] for row in plan.capsules[part, int(looks[part, 0])].tolist() if row[2] > 0]
        if part == plan.face:
            capsules.append(plan.beak[int(looks[part, 0])].tolist())
        distance = min(from_capsule(px, py, *capsule) for capsule in capsules)
        margin = min(margin, abs(distance))
        label = part + 1 if distance <= 0 else label
    return label, margin


def turned(x: float, y: float, angle: float) -> tuple[float, float]:
    return math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x


def from_capsule(x: float, y: float, x0: float, y0: float, r0: float, x1: float, y1: float, r1: float) -> float:
    length = (x1 - x0) ** 2 + (y1 - y0) ** 2
    along = 0.0 if length == 0 else min(1.0, max(0.0, ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / length))
    near = (x0 + along * (x1 - x0), y0 + along * (y1 - y0))
    return math.dist((x, y), near) - (r0 + along * (r1 - r0))


def test_another_color_of_a_part_changes_that_part_only():
    looks, pose = random_looks(8), random_poses(8)
    repainted = looks.clone()
    repainted[:, WING, 1] = (looks[:, WING, 1] + 3) % len(COLORS)
    first, second = (draw(PLANS["bird"], each, pose) for each in (looks, repainted))
    assert torch.equal(first.label_maps, second.label_maps)
    near_wing = F.max_pool2d((first.label_maps == WING + 1).float()[:, None], 3, 1, 1)[:, 0] > 0  # soft edges
    changed = (first.images != second.images).any(dim=1)
    assert not bool((changed & ~near_wing).any())
    assert bool(changed.any())


def test_hybrids_keep_pose_background_and_light():
    looks, pose = random_looks(8), random_poses(8)
    hybrid = looks.clone()
    hybrid[:, [0, 2, 3, 4]] = random_looks(8, seed=9)[:, [0, 2, 3, 4]]  # all but the body, where the rest is attached
    first, second = (draw(PLANS["bird"], each, pose) for each in (looks, hybrid))
    covered = ((first.label_maps > 0) | (second.label_maps > 0)).float()[:, None]
    free = F.max_pool2d(covered, 3, 1, 1)[:, 0] == 0
    assert float(free.float().mean()) > 0.3
    assert torch.equal(first.images.movedim(1, 3)[free], second.images.movedim(1, 3)[free])


@FAMILIES
def test_a_creature_that_looks_the_other_way_is_mirrored(family):
    right, left = quiet_pose(), quiet_pose()
    left[:, 0] = 0.4
    looks = random_looks(1)
    seen = [draw(PLANS[family], looks, pose).label_maps for pose in (right, left)]
    assert torch.equal(seen[0], seen[1].flip(2))


def test_a_plain_part_has_its_color_inside():
    looks = random_looks(1).repeat(len(COLORS), 1, 1)
    looks[:, 1] = torch.tensor([[0, color, 0] for color in range(len(COLORS))])  # round plain bodies
    pose = quiet_pose(len(COLORS))
    pose[:, 20] = 10 / 18  # light 1
    drawing = draw(PLANS["bird"], looks, pose)
    for image, label_map, value in zip(drawing.images, drawing.label_maps, COLORS.values(), strict=True):
        body = image[:, label_map == 2].float() / 255
        assert_close(body.median(dim=1).values, torch.tensor(value), atol=0.03, rtol=0)


@pytest.mark.parametrize("texture", [1, 2])
def test_textures_can_be_seen(texture):
    looks = torch.stack([random_looks(1)[0], random_looks(1)[0]])
    looks[:, 1, 0], looks[:, 1, 2] = 0, torch.tensor([0, texture])
    plain, textured = draw(PLANS["bird"], looks, quiet_pose(2)).images.float()
    body = draw(PLANS["bird"], looks, quiet_pose(2)).label_maps[0] == 2
    assert float((plain - textured).abs().amax(dim=0)[body].gt(40).float().mean()) > 0.2


def test_what_stands_in_front_is_background_in_the_truth():
    looks = random_looks(4)
    free, hidden = quiet_pose(4), quiet_pose(4)
    hidden[:, 28] = 0.01
    before, after = (draw(PLANS["bird"], looks, pose).label_maps for pose in (free, hidden))
    changed = before != after
    assert bool(changed.flatten(1).any(dim=1).all())
    assert bool((after[changed] == 0).all())


def test_visibility_is_eight_pixels_at_64():
    label_maps = torch.zeros(1, 64, 64, dtype=torch.uint8)
    label_maps[0, 0, :8], label_maps[0, 1, :7] = 1, 2
    assert visible_parts(label_maps).tolist() == [[True, False, False, False, False]]
    assert Drawing(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), label_maps).visible.tolist() == [
        [True, False, False, False, False]
    ]
    assert ABSENT_BELOW * 64**2 == 8


def test_parts_out_of_view_are_absent_and_seldom():
    looks, pose = random_looks(128), random_poses(128)
    pose[:, 6] = 0.05  # all stand aside, as one in ten does
    visible = draw(PLANS["bird"], looks, pose).visible
    assert 0.002 < float((~visible).float().mean()) < 0.3
    pose[:, 6], pose[:, 28] = 0.5, 0.5  # none does, and nothing stands in front
    assert bool(draw(PLANS["bird"], looks, pose).visible.all())


@pytest.mark.parametrize("shape", [(3, POSE_SIZE - 1), (POSE_SIZE,)])
def test_a_pose_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match=rf"pose must be \(B, {POSE_SIZE}\)"):
        Pose(torch.zeros(shape))
