"""Body plans as numbers: every part is a union of tapered capsules (x0, y0, r0, x1, y1, r1).

Lengths are in sides of the image; x points right, y points down; the creature looks to the right. A part's capsules
are given around its joint, so that a part turns about the place where it is attached.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partcraft_lit.world.zoo.looks import NUM_PARTS, NUM_SHAPES

Capsule = tuple[float, float, float, float, float, float]
_NOTHING: Capsule = (0.0, 0.0, -9.0, 0.0, 0.0, -9.0)
CAPSULES = 6  # the most that one part needs


def _pair(capsules: list[Capsule], offsets: tuple[float, ...]) -> list[Capsule]:
    """The same capsules at several places along x: legs."""
    return [(x0 + o, y0, r0, x1 + o, y1, r1) for o in offsets for x0, y0, r0, x1, y1, r1 in capsules]


@dataclass(frozen=True)
class BodyPlan:
    """Geometry of a family as tensors.

    Attributes:
        capsules: (parts, shapes, CAPSULES, 6).
        joints: (body shapes, parts, 2) where each part is attached.
        order: parts from back to front.
        swing: (parts,) how far each part turns about its joint, in radians to either side.
        face: part that carries eye and beak or nose.
        eye: (face shapes, 2) place of the eye around the face's joint.
        beak: (face shapes, 6) one capsule drawn in the colour of horn.
        body: index of the body among the parts.
        texture_scale: (parts,) relative period of stripes and spots.
    """

    capsules: Tensor
    joints: Tensor
    order: tuple[int, ...]
    swing: Tensor
    face: int
    eye: Tensor
    beak: Tensor
    body: int
    texture_scale: Tensor


def _tensor(parts: list[list[list[Capsule]]]) -> Tensor:
    padded = [[shape + [_NOTHING] * (CAPSULES - len(shape)) for shape in part] for part in parts]
    capsules = torch.tensor(padded, dtype=torch.float32)
    assert capsules.shape == (NUM_PARTS, NUM_SHAPES, CAPSULES, 6)
    return capsules


_FOOT = (0.0, 0.115, 0.036, 0.075, 0.125, 0.026)
_BIRD_HEAD: list[list[Capsule]] = [
    [(0.0, 0.0, 0.125, 0.01, 0.0, 0.125)],
    [
        (0.0, 0.0, 0.112, 0.01, 0.0, 0.112),
        (-0.05, -0.06, 0.05, -0.17, -0.13, 0.012),
        (-0.02, -0.08, 0.045, -0.09, -0.21, 0.012),
        (0.03, -0.08, 0.04, 0.01, -0.22, 0.012),
    ],
    [(-0.03, -0.01, 0.105, 0.07, 0.015, 0.08)],
    [
        (-0.025, 0.0, 0.118, 0.03, 0.0, 0.118),
        (-0.07, -0.07, 0.05, -0.11, -0.19, 0.014),
        (0.07, -0.07, 0.05, 0.11, -0.19, 0.014),
    ],
]
_BODY: list[list[Capsule]] = [
    [(-0.05, 0.0, 0.18, 0.05, 0.0, 0.18)],
    [(-0.16, 0.03, 0.115, 0.14, -0.03, 0.13)],
    [(-0.10, 0.03, 0.19, 0.11, -0.04, 0.135)],
    [(-0.01, 0.07, 0.165, 0.03, -0.08, 0.13)],
]
_BIRD_WING: list[list[Capsule]] = [
    [(0.05, -0.01, 0.105, -0.13, 0.06, 0.07)],
    [(0.05, -0.01, 0.10, -0.06, 0.05, 0.09), (-0.04, 0.04, 0.09, -0.29, 0.14, 0.015)],
    [(0.04, 0.0, 0.075, -0.08, -0.22, 0.055), (0.03, 0.01, 0.07, -0.19, -0.13, 0.045)],
    [
        (0.03, -0.02, 0.07, -0.21, -0.07, 0.034),
        (0.03, 0.01, 0.07, -0.21, 0.035, 0.034),
        (0.03, 0.03, 0.07, -0.15, 0.125, 0.034),
    ],
]
_BIRD_TAIL: list[list[Capsule]] = [
    [(0.03, 0.0, 0.06, -0.25, 0.05, 0.042)],
    [
        (0.03, 0.0, 0.05, -0.17, -0.13, 0.055),
        (0.03, 0.0, 0.05, -0.20, 0.0, 0.055),
        (0.03, 0.0, 0.05, -0.16, 0.13, 0.055),
    ],
    [(0.03, 0.0, 0.06, -0.24, -0.11, 0.03), (0.03, 0.0, 0.06, -0.24, 0.11, 0.03)],
    [(0.03, 0.0, 0.055, -0.12, 0.02, 0.115)],
]
_BIRD_LEGS: list[list[Capsule]] = [
    _pair([(0.0, -0.03, 0.046, 0.0, 0.11, 0.042), _FOOT], (-0.085, 0.065)),
    _pair([(0.0, -0.03, 0.036, 0.0, 0.185, 0.034), (0.0, 0.195, 0.034, 0.07, 0.205, 0.026)], (-0.08, 0.06)),
    _pair([(0.0, -0.03, 0.038, 0.0, 0.12, 0.036), (0.0, 0.13, 0.034, 0.075, 0.14, 0.055)], (-0.1, 0.05)),
    _pair([(0.0, -0.03, 0.085, 0.0, 0.10, 0.036), (0.0, 0.12, 0.032, 0.05, 0.125, 0.024)], (-0.09, 0.07)),
]
_BIRD_JOINTS = [  # head, body, wing, tail, legs for each body shape
    [(0.17, -0.20), (0.0, 0.0), (0.0, -0.02), (-0.20, 0.02), (0.01, 0.17)],
    [(0.24, -0.14), (0.0, 0.0), (0.01, -0.02), (-0.24, 0.05), (0.02, 0.12)],
    [(0.20, -0.18), (0.0, 0.0), (-0.01, -0.02), (-0.26, 0.05), (-0.02, 0.18)],
    [(0.09, -0.24), (0.0, 0.0), (-0.01, -0.01), (-0.15, 0.12), (0.0, 0.21)],
]

BIRD_PLAN = BodyPlan(
    capsules=_tensor([_BIRD_HEAD, _BODY, _BIRD_WING, _BIRD_TAIL, _BIRD_LEGS]),
    joints=torch.tensor(_BIRD_JOINTS),
    order=(3, 4, 1, 0, 2),
    swing=torch.tensor([0.22, 0.10, 0.25, 0.30, 0.10]),
    face=0,
    eye=torch.tensor([[0.05, -0.03], [0.045, -0.02], [0.05, -0.025], [0.06, -0.02]]),
    beak=torch.tensor(
        [
            [0.10, 0.015, 0.045, 0.20, 0.03, 0.010],
            [0.09, 0.015, 0.045, 0.19, 0.03, 0.010],
            [0.12, 0.020, 0.040, 0.31, 0.06, 0.010],
            [0.12, 0.035, 0.035, 0.16, 0.08, 0.010],
        ]
    ),
    body=1,
    texture_scale=torch.tensor([1.0, 1.15, 1.0, 0.95, 0.8]),
)

_EARS: list[list[Capsule]] = [
    _pair([(0.0, 0.03, 0.055, -0.01, -0.12, 0.012)], (-0.055, 0.06)),
    [(-0.08, 0.0, 0.045, -0.12, 0.15, 0.06), (0.05, -0.02, 0.045, 0.03, 0.12, 0.06)],
    _pair([(0.0, 0.0, 0.068, 0.0, -0.04, 0.068)], (-0.08, 0.07)),
    _pair([(0.0, 0.02, 0.045, -0.04, -0.17, 0.04)], (-0.05, 0.05)),
]
_MUZZLE: list[list[Capsule]] = [
    [(0.0, 0.0, 0.125, 0.03, 0.01, 0.115)],
    [(0.0, 0.0, 0.11, 0.02, 0.01, 0.11), (0.03, 0.03, 0.085, 0.17, 0.06, 0.05)],
    [(-0.02, 0.0, 0.12, 0.03, 0.0, 0.12), (0.03, 0.04, 0.095, 0.10, 0.055, 0.085)],
    [(-0.02, -0.01, 0.10, 0.14, 0.05, 0.035)],
]
_BEAST_BODY: list[list[Capsule]] = [
    [(-0.12, 0.0, 0.155, 0.10, 0.0, 0.155)],
    [(-0.19, 0.01, 0.105, 0.16, -0.02, 0.115)],
    [(-0.15, 0.01, 0.165, 0.11, -0.02, 0.14)],
    [(-0.10, 0.01, 0.13, 0.11, -0.06, 0.15)],
]
_BEAST_LEGS: list[list[Capsule]] = [
    _pair([(0.0, 0.0, 0.042, 0.0, 0.15, 0.04)], (-0.19, -0.09, 0.07, 0.16)),
    _pair([(0.0, 0.0, 0.036, 0.0, 0.22, 0.034)], (-0.19, -0.10, 0.08, 0.17)),
    _pair([(0.0, 0.0, 0.055, 0.0, 0.16, 0.056)], (-0.17, 0.13)),
    _pair([(0.0, 0.0, 0.075, 0.0, 0.16, 0.035)], (-0.18, 0.0, 0.15)),
]
_BEAST_TAIL: list[list[Capsule]] = [
    [(0.02, 0.0, 0.035, -0.20, 0.10, 0.034)],
    [(0.02, 0.0, 0.036, -0.10, -0.04, 0.036), (-0.10, -0.04, 0.036, -0.13, -0.20, 0.036)],
    [(0.02, 0.0, 0.035, -0.12, -0.04, 0.075), (-0.12, -0.04, 0.075, -0.20, -0.12, 0.04)],
    [(0.02, 0.0, 0.06, -0.06, -0.02, 0.065)],
]
_BEAST_JOINTS = [  # ears, muzzle, body, legs, tail for each body shape
    [(0.25, -0.25), (0.26, -0.15), (0.0, 0.0), (0.0, 0.12), (-0.25, -0.05)],
    [(0.28, -0.24), (0.29, -0.14), (0.0, 0.0), (0.0, 0.07), (-0.28, -0.02)],
    [(0.25, -0.26), (0.26, -0.16), (0.0, 0.0), (0.0, 0.13), (-0.29, -0.04)],
    [(0.24, -0.29), (0.25, -0.19), (0.0, 0.0), (0.0, 0.09), (-0.22, -0.03)],
]
BEAST_PLAN = BodyPlan(
    capsules=_tensor([_EARS, _MUZZLE, _BEAST_BODY, _BEAST_LEGS, _BEAST_TAIL]),
    joints=torch.tensor(_BEAST_JOINTS),
    order=(4, 3, 2, 1, 0),
    swing=torch.tensor([0.12, 0.15, 0.06, 0.08, 0.30]),
    face=1,
    eye=torch.tensor([[0.03, -0.03], [0.03, -0.035], [0.03, -0.035], [0.02, -0.03]]),
    beak=torch.tensor(
        [
            [0.125, 0.02, 0.030, 0.135, 0.02, 0.030],
            [0.190, 0.05, 0.030, 0.205, 0.05, 0.030],
            [0.160, 0.03, 0.034, 0.175, 0.03, 0.034],
            [0.160, 0.05, 0.026, 0.170, 0.05, 0.026],
        ]
    ),
    body=2,
    texture_scale=torch.tensor([0.85, 1.0, 1.15, 0.8, 0.85]),
)
PLANS: dict[str, BodyPlan] = {"bird": BIRD_PLAN, "beast": BEAST_PLAN}
