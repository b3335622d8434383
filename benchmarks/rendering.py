"""How fast the zoo is drawn: ``python benchmarks/rendering.py [--seconds 2] [--threads 2]``.

Goal: 500 images of 64 x 64 per second on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import torch

from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.zoo.draw import POSE_SIZE, draw
from partcraft_lit.world.zoo.looks import COLORS, NUM_PARTS, NUM_SHAPES, TEXTURES
from partcraft_lit.world.zoo.scenes import PretrainingScenes
from partcraft_lit.world.zoo.shapes import PLANS


def rate(work: Callable[[int], int], seconds: float) -> tuple[float, float]:
    """Images per second of wall time, and per second of the process's own time; ``work`` returns how many it drew."""
    work(0)
    wall, own, done = time.perf_counter(), time.process_time(), 0
    for turn in itertools.count(1):
        done += work(turn)
        if time.perf_counter() - wall > seconds:
            break
    return done / (time.perf_counter() - wall), done / (time.process_time() - own)


def drawing(family: str, batch: int, size: int) -> Callable[[int], int]:
    generator = torch.Generator().manual_seed(0)
    counts = (NUM_SHAPES, len(COLORS), len(TEXTURES))
    looks = torch.stack([torch.randint(count, (batch, NUM_PARTS), generator=generator) for count in counts], dim=2)
    pose = torch.rand(batch, POSE_SIZE, generator=generator)
    return lambda turn: len(draw(PLANS[family], looks, pose, size).images)


def captioned(turn: int) -> int:
    return len(PretrainingScenes().batch(range(32 * turn, 32 * turn + 32))[1])


def source(turn: int) -> int:
    creatures = Creatures(species=20, images_per_species=10, seed=turn)
    for index in range(len(creatures)):
        creatures.image(index)
        creatures.truth(index)
    return len(creatures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given, _ = parser.parse_known_args()
    torch.set_num_threads(given.threads)
    print(f"{given.threads} thread(s); pictures per second of wall time, and of the process's own time")
    measurements: dict[str, Callable[[int], int]] = {
        "draw birds, 64 px, 32 at a time": drawing("bird", 32, 64),
        "draw birds, 64 px, one at a time": drawing("bird", 1, 64),
        "draw birds, 128 px, 32 at a time": drawing("bird", 32, 128),
        "draw beasts, 64 px, 32 at a time": drawing("beast", 32, 64),
        "captioned scenes, 64 px": captioned,
        "creatures with truth, 64 px": source,
    }
    for name, work in measurements.items():
        wall, own = rate(work, given.seconds)
        print(f"{name:<36}{wall:8.0f}{own:8.0f}")


if __name__ == "__main__":
    main()
