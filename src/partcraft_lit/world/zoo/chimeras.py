"""Creatures of one family with parts of the other: a beast with a bird's wing, a bird with a beast's ears."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from partcraft_lit.world.zoo.draw import Drawing, Pose, blank, finish, paint
from partcraft_lit.world.zoo.looks import FAMILIES, NUM_PARTS, Family
from partcraft_lit.world.zoo.shapes import PLANS, BodyPlan

#: Labels of guest parts follow those of the host's.
FIRST_GUEST = 1 + NUM_PARTS


@dataclass(frozen=True)
class Place:
    """Where a part of one family sits on a creature of the other.

    Attributes:
        anchor: part of the host at whose joint it is.
        replaces: parts of the host that are not drawn; none if it comes beside them.
        offset: (x, y) from that joint, in the creature's frame.
    """

    anchor: str
    replaces: tuple[str, ...]
    offset: tuple[float, float] = (0.0, 0.0)


#: Family of the guest part -> part -> its place on the other family.
PLACES: dict[str, dict[str, Place]] = {
    "bird": {
        "head": Place("muzzle", ("muzzle", "ears")),
        "body": Place("body", ("body",)),
        "wing": Place("body", (), (0.0, -0.02)),
        "tail": Place("tail", ("tail",)),
        "legs": Place("legs", ("legs",)),
    },
    "beast": {
        "ears": Place("head", (), (-0.01, -0.10)),
        "muzzle": Place("head", ("head",)),
        "body": Place("body", ("body",)),
        "legs": Place("legs", ("legs",)),
        "tail": Place("tail", ("tail",)),
    },
}


def other_family(family: str) -> Family:
    """The family that is not of that name."""
    return next(other for name, other in FAMILIES.items() if name != family)


def replaced_parts(family: str, guests: Mapping[str, object]) -> set[str]:
    """Parts of the other family that do not show beside these guest parts of ``family``."""
    return {part for guest in guests for part in PLACES[family][guest].replaces}


def draw_chimera(family: str, looks: Tensor, guests: Mapping[str, Tensor], pose: Tensor, size: int = 64) -> Drawing:
    """Draws a batch of creatures of the other family with guest parts.

    Args:
        family: of the guest parts.
        looks: (B, parts, 3) looks of the hosts, which are of the other family; those of replaced parts are ignored.
        guests: guest part -> (B, 3) look.
        pose: (B, POSE_SIZE).
        size: side of the images in pixels.

    Returns:
        Images and label maps; labels of guest parts begin with ``FIRST_GUEST``. Equal arguments give equal bytes.
    """
    host, other = FAMILIES[family], other_family(family)
    plan, guest_plan = PLANS[other.noun], PLANS[family]
    looks, hidden = looks.clone(), replaced_parts(family, guests)
    if "body" in guests:  # both families have the same words for shapes of bodies, and joints for each
        looks[:, plan.body, 0] = guests["body"][:, 0]
    view = Pose(pose)
    image, label_map = blank(view, size)

    def paint_guest(name: str) -> None:
        place, part = PLACES[family][name], host.part_names.index(name)
        seated = _seated(guest_plan, part, plan, other.part_names.index(place.anchor), place.offset)
        own = torch.zeros_like(looks)
        own[:, guest_plan.body, 0] = looks[:, plan.body, 0]  # which joints there are
        own[:, part] = guests[name]
        paint(seated, own, view, image, label_map, first_label=FIRST_GUEST)

    for part in plan.order:  # from back to front
        name = other.part_names[part]
        if name not in hidden:
            paint(replace(plan, order=(part,)), looks, view, image, label_map)
        for guest in guests:
            if PLACES[family][guest].replaces and PLACES[family][guest].anchor == name:
                paint_guest(guest)
    for guest in guests:
        if not PLACES[family][guest].replaces:
            paint_guest(guest)
    return finish(view, image, label_map)


def _seated(guest: BodyPlan, part: int, host: BodyPlan, anchor: int, offset: tuple[float, float]) -> BodyPlan:
    """The guest's plan with that part alone, at a joint of the host."""
    joints = guest.joints.clone()
    joints[:, part] = host.joints[:, anchor] + torch.tensor(offset)
    return replace(guest, order=(part,), joints=joints)
