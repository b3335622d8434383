"""How lines of one figure are told apart: by colour, by dashes and by the shape of their points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from partcraft_lit.core.visualization import Color

Place = tuple[float, float]

#: Okabe and Ito, "Color Universal Design" (2008), with a violet instead of the yellow, which is faint on white. The two
#: nearest are 16 apart (CIE 1976) for every kind of colour blindness, simulated after Machado et al. (2009).
_COLORS: tuple[Color, ...] = (
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (110, 30, 200),
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (204, 121, 167),
)
#: Lengths of ink and gap in turn, in pixels; nothing is a whole line.
_DASHES: tuple[tuple[float, ...], ...] = ((), (9, 4), (2.5, 3.5), (10, 3.5, 2.5, 3.5))


def _polygon(corners: int, radius: float, inner: float | None = None) -> tuple[Place, ...]:
    """A regular polygon with a corner on top, or with ``inner`` a star."""
    radii = [radius] if inner is None else [radius, inner]
    count = corners * len(radii)
    turns = [(2 * math.pi * k / count, radii[k % len(radii)]) for k in range(count)]
    return tuple((r * math.sin(turn), -r * math.cos(turn)) for turn, r in turns)


#: Corners of a point around its middle, for a radius of 1; nothing is a disc.
_SHAPES: tuple[tuple[Place, ...], ...] = (
    (),
    ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    _polygon(3, 1.3),
    _polygon(4, 1.3),
    tuple((x, -y) for x, y in _polygon(3, 1.3)),
    _polygon(5, 1.5, 0.6),
    _polygon(4, 1.5, 0.5),
    _polygon(6, 1.15),
)


@dataclass(frozen=True)
class Stroke:
    """One line's looks.

    Attributes:
        color: of line and points.
        dashes: lengths of ink and gap in turn; () for a whole line.
        shape: corners of a point of radius 1 around (0, 0); () for a disc.
    """

    color: Color
    dashes: tuple[float, ...]
    shape: tuple[Place, ...]


def stroke(index: int) -> Stroke:
    """Of the line in this place; from the ninth on colours come again, with other dashes."""
    turn = index // len(_COLORS)
    return Stroke(
        _COLORS[index % len(_COLORS)],
        _DASHES[(index + turn) % len(_DASHES)],
        _SHAPES[(index + turn) % len(_SHAPES)],
    )


def dashed(points: Sequence[Place], dashes: Sequence[float]) -> Iterator[list[Place]]:
    """Pieces of a line that have ink; the pattern runs on around corners.

    Args:
        points: corners of the line.
        dashes: lengths of ink and gap in turn; empty for a whole line.
    """
    if not dashes:
        yield list(points)
        return
    turn, left = 0, dashes[0]
    piece = [points[0]]
    for start, end in pairwise(points):
        length, done = math.dist(start, end), 0.0
        while length - done > left:
            done += left
            corner = (
                start[0] + (end[0] - start[0]) * done / length,
                start[1] + (end[1] - start[1]) * done / length,
            )
            if turn % 2 == 0:
                yield [*piece, corner]
            piece = [corner]
            turn += 1
            left = dashes[turn % len(dashes)]
        left -= length - done
        piece.append(end)
    if turn % 2 == 0 and len(piece) > 1:
        yield piece
