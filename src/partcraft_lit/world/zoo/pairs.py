"""Scenes of two creatures, a bird and a beast side by side, for methods that learn several concepts from one image.

The parts of the left creature have labels 1...5 and those of the right one 6...10. Both families have equally many
parts, so ``(label - 1) // NUM_PARTS`` is the creature of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partcraft_lit.world.zoo.draw import ASIDE_COLUMN, Drawing, Placement, Pose, blank, finish, paint
from partcraft_lit.world.zoo.looks import NUM_PARTS
from partcraft_lit.world.zoo.shapes import PLANS

#: Size of a creature in a pair, against a creature alone.
_SCALE = 0.62
_ASIDE = 0.235


@dataclass(frozen=True)
class PairMember:
    """One of the two.

    Attributes:
        family: "bird" or "beast".
        looks: (B, parts, 3).
        pose: (B, POSE_SIZE); light, background and occlusion are those of the left one.
    """

    family: str
    looks: Tensor
    pose: Tensor


def draw_pair(left: PairMember, right: PairMember, size: int = 64) -> Drawing:
    """Images of two creatures beside each other; equal arguments give equal bytes."""
    light = Pose(left.pose)
    image, label_map = blank(light, size)
    for member, side in ((left, -1.0), (right, 1.0)):
        paint(
            PLANS[member.family],
            member.looks,
            _upright(member.pose),
            image,
            label_map,
            _placement(member.pose, side),
            first_label=1 if side < 0 else 1 + NUM_PARTS,
        )
    return finish(light, image, label_map)


def _upright(pose: Tensor) -> Pose:
    """In a pair no creature stands aside: it would stand on the other."""
    pose = pose.clone()
    pose[:, ASIDE_COLUMN] = 1.0
    return Pose(pose)


def _placement(pose: Tensor, side: float) -> Placement:
    """Columns 60 to 62 of a pose are used by nothing else."""
    jitter = (pose[:, 60:62] - 0.5) * torch.tensor([0.06, 0.16])
    scale = _SCALE * (0.92 + 0.16 * pose[:, 62])
    return Placement(jitter + torch.tensor([side * _ASIDE, 0.02]), scale)


def creature_masks(label_maps: Tensor) -> Tensor:
    """(B, H, W) label maps of pairs -> (B, H, W) uint8: 0 background, 1 left creature, 2 right creature."""
    labels = label_maps.long()
    return torch.where(labels > 0, 1 + (labels - 1) // NUM_PARTS, 0).to(torch.uint8)
