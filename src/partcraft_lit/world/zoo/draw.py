"""Draws creatures, many at once, with exact masks.

An image is a function of (looks, pose): ``looks`` is the appearance of each part, ``pose`` is a row of uniform numbers
that decides everything else (place, scale, turn, mirror, joints, light, background, occlusion). So a hybrid drawn with
the pose of a photograph is the image that a perfect composer would make of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from partcraft_lit.world.zoo.looks import ACCENTS, COLORS, NUM_PARTS
from partcraft_lit.world.zoo.shapes import BodyPlan

#: Uniform numbers that make a pose.
POSE_SIZE = 64
#: The number of a pose that decides whether the creature stands aside.
ASIDE_COLUMN = 6
#: A part with fewer visible pixels than this share of the image counts as absent (8 pixels at 64 x 64).
ABSENT_BELOW = 8 / 64**2

_HORN = (0.93, 0.66, 0.20)
_NOSE = (0.13, 0.10, 0.12)
_BARK = (0.30, 0.25, 0.19)
_PERIOD = 0.125  # of stripes and spots: eight pixels at 64, so that a texture survives an autoencoder


@dataclass(frozen=True)
class Drawing:
    """Images and truth.

    Attributes:
        images: (B, 3, size, size) uint8.
        label_maps: (B, size, size) uint8, 0 background, 1 + part index elsewhere.
    """

    images: Tensor
    label_maps: Tensor

    @cached_property
    def visible(self) -> Tensor:
        """(B, parts) bool: which parts can be seen."""
        return visible_parts(self.label_maps)


def visible_parts(label_maps: Tensor) -> Tensor:
    """(B, H, W) label maps -> (B, parts) bool, True where a part covers at least ``ABSENT_BELOW`` of the image."""
    share = torch.stack([(label_maps == part + 1).float().mean(dim=(1, 2)) for part in range(NUM_PARTS)], dim=1)
    return share >= ABSENT_BELOW


class Pose:
    """Names for the columns of a pose; every property is (B,) or (B, n)."""

    def __init__(self, uniform: Tensor) -> None:
        if uniform.ndim != 2 or uniform.shape[1] != POSE_SIZE:
            raise ValueError(f"pose must be (B, {POSE_SIZE}) uniform numbers, got {tuple(uniform.shape)}")
        self.uniform = uniform

    def between(self, column: int, low: float, high: float) -> Tensor:
        return low + (high - low) * self.uniform[:, column]

    @property
    def mirror(self) -> Tensor:
        return torch.where(self.uniform[:, 0] < 0.5, -1.0, 1.0)

    @property
    def scale(self) -> Tensor:
        return self.between(1, 0.82, 1.06)

    @property
    def angle(self) -> Tensor:
        return self.between(2, -0.20, 0.20)

    @property
    def shift(self) -> Tensor:
        """(B, 2) of the whole creature; one in ten stands well aside, where a part may leave the image."""
        near = torch.stack([self.between(3, -0.05, 0.05), self.between(4, -0.05, 0.05)], dim=1)
        direction = 2 * math.pi * self.uniform[:, 5]
        aside = 0.36 * torch.stack([direction.cos(), direction.sin()], dim=1)
        return near + aside * (self.uniform[:, ASIDE_COLUMN] < 0.1)[:, None]

    @property
    def stretch(self) -> Tensor:
        """(B,) width over height: a slight turn towards the viewer."""
        return self.between(7, 0.88, 1.08)

    def joint_turn(self, swing: Tensor) -> Tensor:
        """(B, parts) angle of each part about its joint."""
        return (2 * self.uniform[:, 8 : 8 + NUM_PARTS] - 1) * swing

    def part_scale(self) -> Tensor:
        """(B, parts)."""
        return 0.93 + 0.14 * self.uniform[:, 14 : 14 + NUM_PARTS]

    @property
    def light(self) -> Tensor:
        return self.between(20, 0.90, 1.08)

    @property
    def texture_phase(self) -> Tensor:
        """(B, parts)."""
        return self.uniform[:, 22 : 22 + NUM_PARTS]

    @property
    def has_occluder(self) -> Tensor:
        return self.uniform[:, 28] < 0.08


@dataclass(frozen=True)
class Placement:
    """Where in the image a creature's own frame lies, for scenes of several.

    Attributes:
        shift: (B, 2) of the frame's middle, in sides of the image.
        scale: (B,) of the frame.
    """

    shift: Tensor
    scale: Tensor


def draw(plan: BodyPlan, looks: Tensor, pose: Tensor, size: int = 64) -> Drawing:
    """Draws a batch.

    Args:
        plan: the family's geometry.
        looks: (B, parts, 3) integer shape, colour and texture of each part.
        pose: (B, POSE_SIZE) in 0...1.
        size: side of the images in pixels.

    Returns:
        Images and label maps; equal arguments give equal bytes.
    """
    view = Pose(pose)
    image, label_map = blank(view, size)
    paint(plan, looks, view, image, label_map)
    return finish(view, image, label_map)


def blank(view: Pose, size: int) -> tuple[Tensor, Tensor]:
    """A background (B, 3, size, size) in 0...1 and an empty label map (B, size, size)."""
    image = _background(view, size)
    return image, torch.zeros(len(image), size, size, dtype=torch.uint8)


def paint(
    plan: BodyPlan,
    looks: Tensor,
    view: Pose,
    image: Tensor,
    label_map: Tensor,
    placement: Placement | None = None,
    first_label: int = 1,
) -> None:
    """Paints one creature into each image and its label map, in place, over what is there.

    Args:
        plan: the family's geometry.
        looks: (B, parts, 3) integer shape, colour and texture of each part.
        view: pose of each.
        image: (B, 3, size, size) in 0...1.
        label_map: (B, size, size) uint8.
        placement: None for the whole image.
        first_label: label of the first part.
    """
    size = image.shape[-1]
    grid = _pixel_grid(size)[None].expand(len(image), -1, -1, -1)
    pixel: float | Tensor = 1.0 / size
    if placement is not None:
        scale = placement.scale[:, None, None]
        grid = (grid - placement.shift[:, :, None, None]) / scale[:, None]
        pixel = 1.0 / (size * scale)
    places = _creature_frame(view, grid)  # (B, 2, H, W)
    for part in plan.order:
        local = _part_frame(plan, view, looks, part, places)
        capsules = plan.capsules[part][looks[:, part, 0]] * view.part_scale()[:, part, None, None]
        distance = _distance(local, capsules)
        color = _paint(plan, view, looks[:, part], part, local, distance)
        if part == plan.face:
            color, distance = _face(plan, looks[:, part, 0], local, color, distance, pixel)
        cover = (0.5 - distance / pixel).clamp(0, 1)[:, None]
        image += (color - image).mul_(cover)  # in place, here and below: new pages cost as much as the sums
        label_map[cover[:, 0] >= 0.5] = part + first_label


def finish(view: Pose, image: Tensor, label_map: Tensor) -> Drawing:
    """What lies before the creature, the light, and eight bits."""
    image, label_map = _occlude(view, image, label_map, image.shape[-1])
    image *= view.light[:, None, None, None]
    return Drawing(image.clamp_(0, 1).mul_(255).round_().to(torch.uint8), label_map)


def _pixel_grid(size: int) -> Tensor:
    """(2, size, size) pixel centres in -0.5...0.5, x then y."""
    centers = (torch.arange(size) + 0.5) / size - 0.5
    y, x = torch.meshgrid(centers, centers, indexing="ij")
    return torch.stack([x, y])


def _rotate(places: Tensor, angle: Tensor) -> Tensor:
    """(B, 2, H, W) places turned by -angle (B,): from a turned frame back into the upright one."""
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x, y = places[:, 0], places[:, 1]
    return torch.stack([cos * x + sin * y, cos * y - sin * x], dim=1)


def _creature_frame(view: Pose, grid: Tensor) -> Tensor:
    places = grid - view.shift[:, :, None, None]
    places = places * torch.stack([view.mirror / view.stretch, torch.ones_like(view.mirror)], dim=1)[:, :, None, None]
    return _rotate(places, view.angle) / view.scale[:, None, None, None]


def _part_frame(plan: BodyPlan, view: Pose, looks: Tensor, part: int, places: Tensor) -> Tensor:
    """Places around the joint of a part, upright in the part's own frame, (B, 2, H, W)."""
    joint = plan.joints[looks[:, plan.body, 0], part]  # (B, 2)
    return _rotate(places - joint[:, :, None, None], view.joint_turn(plan.swing)[:, part])


def _distance(local: Tensor, capsules: Tensor) -> Tensor:
    """Signed distance (B, H, W) to the nearest of tapered capsules (B, n, 6), negative inside."""
    nearest = torch.full_like(local[:, 0], 9.0)
    for index in range(capsules.shape[1]):
        if bool((capsules[:, index, 2] < 0).all()):
            continue  # no creature of the batch has so many capsules here
        torch.minimum(nearest, _capsule_distance(local, capsules[:, index]), out=nearest)
    return nearest


def _capsule_distance(local: Tensor, capsule: Tensor) -> Tensor:
    """Signed distance (B, H, W) to one tapered capsule per creature, (B, 6)."""
    x0, y0, r0, x1, y1, r1 = (value[:, None, None] for value in capsule.unbind(dim=1))
    ax, ay = local[:, 0] - x0, local[:, 1] - y0
    bx, by = x1 - x0, y1 - y0
    along = (ax * bx).add_(ay * by).div_(bx * bx + by * by + 1e-9).clamp_(0, 1)
    ax -= along * bx
    ay -= along * by
    return ax.square_().add_(ay.square_()).sqrt_().sub_(along.mul_(r1 - r0).add_(r0))


def _paint(plan: BodyPlan, view: Pose, looks: Tensor, part: int, local: Tensor, distance: Tensor) -> Tensor:
    """Colour of a part at every place, (B, 3, H, W): base, accents of its texture, and a rounded shade."""
    base = torch.tensor(list(COLORS.values()))[looks[:, 1]]
    accent = torch.tensor(list(ACCENTS.values()))[looks[:, 1]]
    amount = _texture(local, looks[:, 2], _PERIOD * plan.texture_scale[part], view.texture_phase[:, part])
    color = (amount[:, None] * (accent - base)[:, :, None, None]).add_(base[:, :, None, None])
    rim = (distance / 0.035).add_(1).clamp_(0, 1).square_()  # 0 inside, 1 at the edge
    return color.mul_(rim.mul_(-0.38).add_(1)[:, None])


def _texture(local: Tensor, texture: Tensor, period: Tensor, phase: Tensor) -> Tensor:
    """How much of the accent shows at every place, (B, H, W) in 0...1; computed only where there is a texture."""
    amount = torch.zeros_like(local[:, 0])
    for kind in (1, 2):
        mine = (texture == kind).nonzero()[:, 0]
        if len(mine) == 0:
            continue
        x, y, shift = local[mine, 0], local[mine, 1], phase[mine, None, None]
        u = 2 * math.pi * (x * 0.45 + y * 0.9) / period  # slanted bands
        if kind == 1:
            amount[mine] = (0.5 + 1.6 * (u + 2 * math.pi * shift).sin()).clamp_(0, 1)
        else:
            v = 2 * math.pi * (x * 0.9 - y * 0.45) / period
            spots = (u + 2 * math.pi * shift).cos() + (v + 4 * shift).cos() - 0.55
            amount[mine] = (0.5 + 1.3 * spots).clamp_(0, 1)
    return amount


def _face(
    plan: BodyPlan, shape: Tensor, local: Tensor, color: Tensor, distance: Tensor, pixel: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Adds eye and beak (or nose) to the face; both belong to its mask."""
    beak = _distance(local, plan.beak[shape][:, None])
    horn = torch.tensor(_HORN if plan.face == 0 else _NOSE)[None, :, None, None]
    cover = (0.5 - beak / pixel).clamp(0, 1)[:, None]
    color += (horn - color).mul_(cover)
    eye = local - plan.eye[shape][:, :, None, None]
    radius = eye.square().sum(dim=1).sqrt()
    for size, shade in ((0.034, 0.98), (0.020, 0.05)):
        cover = (0.5 - (radius - size) / pixel).clamp(0, 1)[:, None]
        color += (shade - color).mul_(cover)
    return color, torch.minimum(distance, beak)


def _muted(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(B,) hue, saturation and value in 0...1 -> (B, 3) colour."""
    offset = torch.tensor([5.0, 3.0, 1.0])
    k = (offset + hue[:, None] * 6) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _background(view: Pose, size: int) -> Tensor:
    """A muted gradient with gentle waves and, half the time, a ground; (B, 3, H, W)."""
    x, y = _pixel_grid(size)
    top = _muted(view.uniform[:, 30], view.between(31, 0.05, 0.30), view.between(32, 0.45, 0.90))
    bottom = _muted(view.uniform[:, 33], view.between(34, 0.05, 0.30), view.between(35, 0.45, 0.90))
    slope = (0.5 + y)[None, None]
    image = top[:, :, None, None] * (1 - slope) + bottom[:, :, None, None] * slope
    for wave in range(2):
        turn = 2 * math.pi * view.uniform[:, 36 + 4 * wave, None, None]
        frequency = view.between(37 + 4 * wave, 6.0, 22.0)[:, None, None]
        phase = 6.3 * view.uniform[:, 38 + 4 * wave, None, None]
        height = view.between(39 + 4 * wave, 0.0, 0.045)[:, None, None]
        image = image + (height * ((x * turn.cos() + y * turn.sin()) * frequency + phase).sin())[:, None]
    ground = view.between(46, 0.10, 0.42)[:, None, None] + 0.03 * (x * view.between(47, 4, 12)[:, None, None]).sin()
    earth = _muted(view.between(48, 0.05, 0.42), view.between(49, 0.15, 0.40), view.between(50, 0.35, 0.70))
    cover = ((y - ground) * size + 0.5).clamp(0, 1)[:, None] * (view.uniform[:, 51] < 0.5)[:, None, None, None]
    return image + cover * (earth[:, :, None, None] - image)


def _occlude(view: Pose, image: Tensor, label_map: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """A branch across some images; what it hides is background in the truth."""
    chosen = view.has_occluder.nonzero()[:, 0]
    if len(chosen) == 0:
        return image, label_map
    grid = _pixel_grid(size)[None].expand(len(chosen), -1, -1, -1)
    u = view.uniform[chosen]
    start = torch.stack([u[:, 54] - 0.5, torch.full_like(u[:, 0], -0.6)], dim=1)
    end = torch.stack([u[:, 55] - 0.5, torch.full_like(u[:, 0], 0.6)], dim=1)
    radius = 0.025 + 0.03 * u[:, 56:57]
    distance = _distance(grid, torch.cat([start, radius, end, radius * 0.7], dim=1)[:, None])
    cover = (0.5 - distance * size).clamp(0, 1)
    shade = torch.tensor(_BARK)[None, :, None, None] * (1 - 8 * distance.clamp(-0.05, 0))[:, None].clamp(0.6, 1.6)
    image, label_map = image.clone(), label_map.clone()
    image[chosen] = image[chosen] + cover[:, None] * (shade - image[chosen])
    label_map[chosen] = torch.where(cover >= 0.5, torch.zeros_like(label_map[chosen]), label_map[chosen])
    return image, label_map
