"""Discovery in shares: ``python benchmarks/shares.py --images 300 --processes 2``.

Images of the zoo, features by EfficientNet-Lite0, an empty store: discovery by one process, then by several that share
it, each with one thread. For each stage the seconds of the slowest process by the clock, and the ratio; last the CPU
seconds of the busiest, which stay comparable where other work shares the cores; and whether the parts are the same to
the last bit. Only as many processes as there are idle cores can gain anything.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from partcraft_lit.config import sources, stored
from partcraft_lit.config.validation import validate
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.parts.discovery import discover
from partcraft_lit.parts.efficientnet import EfficientNetFeatures
from partcraft_lit.parts.settings import PartsSettings
from partcraft_lit.world.creatures import Creatures


def work(rank: int, world: int, images: int, store: Path, start: Any, results: Any) -> None:
    """One process; puts the seconds of its stages and a hash of what it found."""
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    import faiss

    faiss.omp_set_num_threads(1)
    settings = validate(stored.load(sources.conf_dir() / "parts" / "default.yaml"), PartsSettings, "parts")
    source, features = Creatures(20, -(-images // 20), image_size=128), EfficientNetFeatures()
    start.wait()
    began, worked = time.perf_counter(), time.process_time()
    found = discover(source, features, settings, seed=0, batch_size=16, store=Store(store))
    seconds = {**found.report.seconds, "all": time.perf_counter() - began, "all, CPU": time.process_time() - worked}
    maps = [label_map.tolist() for label_map in found.label_maps]
    results.put((seconds, stable_hash(found.dictionary.hash, found.codes.tolist(), maps)))


def measure(world: int, images: int) -> tuple[dict[str, float], set[str]]:
    """Seconds per stage of the slowest of ``world`` processes, and the hashes of what they found."""
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(world), context.Queue()
    with tempfile.TemporaryDirectory(prefix="partcraft-shares-") as store:
        started = [
            context.Process(target=work, args=(rank, world, images, Path(store), start, results))
            for rank in range(world)
        ]
        for process in started:
            process.start()
        found = [results.get() for _ in started]
        for process in started:
            process.join()
    stages = found[0][0]
    return {stage: max(seconds[stage] for seconds, _ in found) for stage in stages}, {what for _, what in found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--processes", type=int, default=2)
    given, _ = parser.parse_known_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    (one, alone), (several, shared) = (measure(world, given.images) for world in (1, given.processes))
    print(f"{given.images} images\n")
    print(f"| stage | one process, s | {given.processes} processes, s | ratio |\n|---|---|---|---|")
    for stage, seconds in one.items():
        print(f"| {stage} | {seconds:.1f} | {several[stage]:.1f} | {seconds / max(several[stage], 1e-3):.2f} |")
    print("\nThe same parts, codes and label maps to the last bit:", "yes" if alone == shared else "NO")


if __name__ == "__main__":
    main()
