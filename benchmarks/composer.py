"""Waiting times of the composer: ``python benchmarks/composer.py [--run RUN] [--images 10000]``.

Opens a trained run as the app and notebooks do, and takes the time of what a person waits for: a preview, four images
in full quality, a click, a page of thumbnails. Then lists, searches and pages through a data set of many images of
which only the names exist. Wall-clock and CPU seconds, the least of some repetitions, beside the goal.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import partcraft_lit as pc
from partcraft_lit.composer.reader import PartReader
from partcraft_lit.composer.stored_parts import StoredParts, select_images
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store

_PAGE = 60


def measured(work: Callable[[], object], repeat: int = 3) -> tuple[float, float]:
    """Least wall-clock and CPU seconds."""
    found = []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(wall for wall, _ in found), min(cpu for _, cpu in found)


def megabytes() -> float:
    """The most memory that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def row(name: str, seconds: tuple[float, float], goal: str = "") -> None:
    print(f"| {name} | {seconds[0]:.3f} | {seconds[1]:.3f} | {goal} |", flush=True)


def waiting_times(where: str) -> pc.Run:
    run: pc.Run | None = None

    def open_it() -> None:
        nonlocal run
        found = pc.open_run(where)
        assert isinstance(found, pc.Run), "name a run, no export"
        run = found

    row("open a run", measured(open_it, 1))
    assert run is not None
    here = run
    row("load its model", measured(here.load, 1))
    row("first image, part under a pixel", measured(lambda: here.image(0).part_at(20, 20), 1))
    numbers = iter(range(1, len(here.images())))
    row("another image, part under a pixel, crop", measured(lambda: clicked(here, next(numbers)), 5), "0.150")
    row("24 thumbnails", measured(lambda: [here.thumbnail(next(numbers)) for _ in range(24)], 2))
    commonest = [max(part.variants, key=lambda v: v.count or 0).choice() for part in here.parts[1:] if part.variants]
    composition = here.compose(commonest)
    row("preview", measured(lambda: here.draw(composition, preview=True)), "1.5")
    row("four images", measured(lambda: here.draw(composition, range(4))), "6")
    (result,) = here.draw(composition)
    row("read the parts back", measured(lambda: here.read(result.image)))
    row("attention", measured(result.attention))
    return here


def clicked(run: pc.Run, index: int) -> object:
    """What a click on an image needs: its parts, the one under the pixel, a thumbnail of it."""
    view = run.image(index)
    return view.part_at(view.size[0] / 2, view.size[1] / 2), [view.crop(choice.part) for choice in view.choices[:1]]


def browsing(run: pc.Run, images: int) -> None:
    """Lists images of which only the names exist."""
    names, generator = run.stored.part_names, torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2, (images, len(names)), generator=generator).tolist()
    with tempfile.TemporaryDirectory() as folder:
        lines = [f"class {index % 50}/{index}.jpg,{','.join(map(str, line))}" for index, line in enumerate(codes)]
        path = Path(folder) / "codes.csv"
        path.write_text("\n".join([",".join(["image", *names]), *lines]) + "\n", encoding="utf-8")

        def no_images() -> None:
            raise UserError("there are none.")

        reader = PartReader(run.dictionary, no_images)  # type: ignore[arg-type]
        stored = StoredParts(Path(folder), reader, no_images, Store(folder))  # type: ignore[arg-type]
        row(f"list {images:,} images", measured(lambda: select_images(stored, None, None, None, None), 1))
        row("search them", measured(lambda: select_images(stored, None, 1, [1], "class 7/")))
        before = megabytes()
        pages = range(0, images, _PAGE)
        everything = select_images(stored, None, None, None, None)
        row("all pages", measured(lambda: [list(everything[start : start + _PAGE]) for start in pages]))
        print(f"\nMemory grew by {megabytes() - before:.1f} MB over {len(pages)} pages.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="latest")
    parser.add_argument("--images", type=int, default=10_000)
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads\n\n| | s | CPU s | goal, s |\n|---|---|---|---|")
    try:
        run = waiting_times(arguments.run)
    except UserError as error:
        print(f"\n{error}")
        return
    browsing(run, arguments.images)


if __name__ == "__main__":
    main()
