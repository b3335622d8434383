"""Composing the jobs of a sweep, before the first starts: ``python benchmarks/sweep_start.py [--jobs 1000]``.

Each job is composed twice: by the sweeper, to check it, and by the launcher. Hydra's own loader, on a few jobs, beside
the one that composes each choice of groups once. CPU seconds, which stay comparable where other work shares the cores.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice, product

from hydra.core.config_loader import ConfigLoader
from hydra.types import RunMode

from partcraft_lit.config import sources
from partcraft_lit.config.loader import SharedLoader

_OF_HYDRA = 10


def cpu_seconds(loader: ConfigLoader, jobs: int) -> float:
    """Of composing so many jobs once: a grid of weights and seeds."""
    grid = islice(product(range(jobs // 10 + 1), range(10)), jobs)
    started = time.process_time()
    for weight, seed in grid:
        overrides = ["experiment=demo", f"loss.lambda_attn={weight / 1000}", f"seed={seed}"]
        loader.load_configuration("train", overrides, RunMode.RUN)
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--jobs", type=int, default=1000)
    jobs = parser.parse_args().jobs
    before = cpu_seconds(sources.loader("train"), _OF_HYDRA) / _OF_HYDRA
    after = cpu_seconds(SharedLoader(sources.loader("train")), jobs) / jobs
    print("| loader | ms of a job | s of the sweep, each job twice |\n|---|---|---|")
    print(f"| Hydra's | {1000 * before:.0f} | {2 * jobs * before:.0f} |")
    print(f"| groups composed once | {1000 * after:.1f} | {2 * jobs * after:.0f} |\n\n{jobs} jobs.")


if __name__ == "__main__":
    main()
