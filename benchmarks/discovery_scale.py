"""Discovery of many images, whose memory must not grow: ``python benchmarks/discovery_scale.py --images 5994``.

Nothing is loaded: features of planted parts and codes are made as they are asked for. For each number of images and
each tier: seconds by the clock and of this process's own work, and the peak of resident memory above what the libraries
take. "making features" is the benchmark's own share of that time. At the end, how much of what was planted came back:
foreground and parts by intersection over union, codes by normalised mutual information and by purity. Linux only.

    python benchmarks/discovery_scale.py --images 5994 --parts 5 --codes 256                     # CUB's size
    python benchmarks/discovery_scale.py --images 10000 30000 100000 --grid 8 --dim 64           # how it grows
    python benchmarks/discovery_scale.py --images 1000000 --grid 8 --dim 64                      # the million itself
"""

from __future__ import annotations

import argparse
import gc
import logging
import multiprocessing
import os
import tempfile
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.config import sources, stored
from partcraft_lit.config.validation import validate
from partcraft_lit.core.randomness import numpy_generator, torch_generator
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import GroundTruth
from partcraft_lit.parts.discovery import Discovery, discover
from partcraft_lit.parts.quality import score_parts
from partcraft_lit.parts.settings import PartsSettings

#: Different vectors of noise; each place of each image takes one of them, by chance.
_NOISE_ROWS = 4096
#: How much the object stands out from the background, as the search for it expects; parts and codes hardly show.
_OBJECT = 128
#: Images whose truth is compared.
_COMPARED = 2000


class Planted:
    """Images whose pixels are the truth: part and code of each cell.

    The object is a rectangle about the middle, of another place and size in each image; its parts are bands of it, from
    the top down. Each part of each image has a code of its own, the background too.
    """

    class_noun = ""
    class_names = ()

    def __init__(self, number: int, grid: int, parts: int, codes: int, chosen: Sequence[int] | None = None) -> None:
        self.number, self.grid, self.parts, self.codes = number, grid, parts, codes
        self.part_names = [f"part{part}" for part in range(1, parts + 1)]
        self._chosen = chosen if chosen is not None else range(number)

    def __len__(self) -> int:
        return len(self._chosen)

    def some(self, most: int) -> Planted:
        """At most so many of the images, spread evenly."""
        step = max(self.number // most, 1)
        return Planted(self.number, self.grid, self.parts, self.codes, range(0, self.number, step)[:most])

    def image(self, index: int) -> Tensor:
        layout, codes = self._drawn(index)
        shown = codes[layout.long()].to(torch.uint8)
        return torch.stack([(layout > 0) * _OBJECT + layout, shown // 16, shown % 16])

    def truth(self, index: int) -> GroundTruth:
        layout, codes = self._drawn(index)
        return GroundTruth(layout, tuple(codes[1:].tolist()), tuple(self.part_names))

    def name(self, index: int) -> str:
        return str(self._chosen[index])

    def content_hash(self, index: int) -> str:
        return f"{self._chosen[index]:064x}"

    def label(self, index: int) -> None:
        return None

    def _drawn(self, index: int) -> tuple[Tensor, Tensor]:
        """(grid, grid) uint8 parts, and (M + 1,) codes."""
        rng = numpy_generator(0, "planted", self._chosen[index])
        codes = torch.from_numpy(rng.integers(self.codes, size=self.parts + 1))
        height, width = (int(rng.integers(self.grid // 2, self.grid * 3 // 4 + 1)) for _ in range(2))
        top, left = (int(rng.integers(1, self.grid - side)) for side in (height, width))  # off the border
        layout = torch.zeros(self.grid, self.grid, dtype=torch.uint8)
        bands = torch.arange(height) * self.parts // height + 1
        layout[top : top + height, left : left + width] = bands[:, None].to(torch.uint8)
        return layout, codes


class PlantedFeatures:
    """A direction for each part, less of one for each code of it, and noise."""

    id = hash = "planted"

    def __init__(self, dim: int, parts: int, codes: int) -> None:
        self.parts, self.seconds = parts, 0.0
        generator = torch_generator(1, "planted")
        self.kinds = F.normalize(torch.randn(parts + 1, dim, generator=generator), dim=1)
        self.looks = 0.5 * F.normalize(torch.randn((parts + 1) * codes, dim, generator=generator), dim=1)
        self.noise = 0.5 * F.normalize(torch.randn(_NOISE_ROWS, dim, generator=generator), dim=1)
        self.codes = codes

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        started = time.process_time()
        found = [self._describe(image) for image in images]
        self.seconds += time.process_time() - started
        return found

    def _describe(self, image: Tensor) -> Tensor:
        part, code = image[0].long() % _OBJECT, image[1].long() * 16 + image[2].long()
        generator = torch.Generator().manual_seed(zlib.crc32(image.numpy().tobytes()))
        chosen = torch.randint(_NOISE_ROWS, (part.numel(),), generator=generator)
        features = self.kinds[part.flatten()]
        features += self.looks[(part * self.codes + code).flatten()]
        features += self.noise[chosen]
        return features.view(*part.shape, -1)


class Meter:
    """Peaks of the tiers, told apart by what discovery says of its progress."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self.cpu: dict[str, float] = {}
        gc.collect()
        self._least = _resident("VmRSS")
        self._cpu = time.process_time()
        _forget_peak()

    def progress(self, stage: str, done: int, total: int) -> None:
        if stage == "sample patches" and done == total:
            self.end("sample patches")
        elif stage == "label images" and "fit foreground and parts" not in self.peaks:
            self.end("fit foreground and parts")
        elif stage == "label images" and done == total:
            self.end("label images")

    def end(self, stage: str) -> None:
        self.peaks[stage] = _resident("VmHWM") - self._least
        self.cpu[stage] = time.process_time() - self._cpu
        self._cpu = time.process_time()
        _forget_peak()


def _settings(**changes: Any) -> PartsSettings:
    """Those of ``conf/parts``, changed."""
    return validate(stored.load(sources.conf_dir() / "parts" / "default.yaml") | changes, PartsSettings, "parts")


def measure(number: int, given: argparse.Namespace, store: str | None) -> None:
    """Prints a row for each tier, and one for what was found."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(given.threads)
    import faiss  # so that it counts as a library

    faiss.omp_set_num_threads(given.threads)
    discover(Planted(64, 8, 2, 2), PlantedFeatures(8, 2, 2), _settings(M=2, K=2, foreground_clusters=4), seed=0)
    source = Planted(number, given.grid, given.parts, given.codes)
    features = PlantedFeatures(given.dim, given.parts, given.codes)
    meter = Meter()
    found = discover(
        source,
        features,
        _settings(M=given.parts, K=given.codes, max_patches=given.max_patches, nredo=given.nredo),
        seed=0,
        progress=meter.progress,
        store=Store(store) if store else None,
    )
    meter.end("fit codes")
    for stage, seconds in found.report.seconds.items():
        print(f"| {number:,} | {stage} | {seconds:.1f} | {meter.cpu[stage]:.1f} | {meter.peaks[stage]:.0f} |")
    print(f"| {number:,} | making features | | {features.seconds:.1f} | |")
    seconds, cpu = sum(found.report.seconds.values()), sum(meter.cpu.values())
    print(f"| {number:,} | all | {seconds:.1f} | {cpu:.1f} | {max(meter.peaks.values()):.0f} |")
    print(f"\n{number:,} images: {_recovered(source, found)}\n", flush=True)


def _recovered(source: Planted, found: Discovery) -> str:
    some = source.some(_COMPARED)
    chosen = [int(some.name(index)) for index in range(len(some))]
    maps = [found.label_maps[index] for index in chosen]
    quality = score_parts(some, maps, found.codes[chosen])
    purity = _purity(some, found.codes[chosen], quality.match)
    return (
        f"foreground IoU {quality.foreground_iou:.3f}, part IoU {quality.mean_part_iou:.3f}, codes NMI "
        f"{quality.mean_nmi:.3f} (shuffled {quality.nmi_shuffled:.3f}), purity {purity:.3f}"
    )


def _purity(source: Planted, codes: Tensor, match: dict[str, int | None]) -> float:
    """Share of images whose planted code is the commonest one in their found code, over the parts."""
    truth = torch.tensor([source.truth(index).species for index in range(len(source))])
    right = 0
    for part, column in enumerate(match.values()):
        if column is None:
            continue
        table = torch.zeros(int(codes.max()) + 2, source.codes)  # code -1 is absent: the last row
        table.index_put_((codes[:, column], truth[:, part]), torch.ones(len(truth)), accumulate=True)
        right += int(table[:-1].amax(dim=1).sum())
    return right / (len(truth) * source.parts)


def _resident(field: str) -> float:
    """MB of this process, by the kernel."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 4000])
    parser.add_argument("--grid", type=int, default=16, help="cells along a side")
    parser.add_argument("--dim", type=int, default=768)
    parser.add_argument("--parts", type=int, default=5)
    parser.add_argument("--codes", type=int, default=20)
    parser.add_argument("--max-patches", type=int, default=200_000, help="bound of all samples")
    parser.add_argument("--nredo", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--store", action="store_true", help="also write what is found of each image to a store")
    given, _ = parser.parse_known_args()
    os.environ["OMP_NUM_THREADS"] = str(given.threads)
    print(
        f"{given.parts} parts of {given.codes} codes, {given.grid} x {given.grid} x {given.dim}, samples of "
        f"{given.max_patches:,}, {given.threads} threads\n"
    )
    for number in given.images:  # each in a process of its own: memory that was freed may stay with a process
        print("| images | tier | s | CPU s | peak MB |\n|---|---|---|---|---|", flush=True)
        with tempfile.TemporaryDirectory(prefix="partcraft-scale-") as folder:
            arguments = (number, given, folder if given.store else None)
            child = multiprocessing.get_context("spawn").Process(target=measure, args=arguments)
            child.start()
            child.join()
        if child.exitcode:
            raise SystemExit(child.exitcode)


if __name__ == "__main__":
    main()
