"""All that is to be measured on a GPU, in one command: ``python benchmarks/gpu.py``.

The step beside the released way at 512 px with two images (goal: 10 times as fast, at most 8 GB), our step with more
and more images until they no longer fit, with the share of the matrix rate that it reaches (goal: 0.4), with and
without compiled blocks, and a real step of SDXL. ``--device cpu --small`` runs the same commands with the miniature, to
see that they work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from floor import copy_rate, matrix_rate
from full_size import Case

HERE = Path(__file__).parent
#: 10^12 operations of a step of one image at 512 px, as ``floor.py`` counts them.
OPERATIONS = 1.70


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="the miniature, SD1.5 at 64 px, and no SDXL")
    given, _ = parser.parse_known_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here; --device cpu --small shows that the commands work.")
        return
    rate = matrix_rate(given.device, torch.bfloat16)
    print(f"{rate:.0f} GFLOP/s in bfloat16, {copy_rate(given.device):.0f} GB/s")
    shape = ["--shape", "mini", "--steps", "1"] if given.small else ["--shape", "sd15_512", "--steps", "10"]
    _run("step.py", *shape, "--batch", "2", "--device", given.device, "--precision", "bf16", "--stages")
    print("\n| model | compiled | images | s / step | images/s | GB | share of the matrix rate |")
    print("|---|---|---|---|---|---|---|")
    for kind in ("sd15",) if given.small else ("sd15", "sdxl"):
        for compiled in (False,) if given.small else (False, True):
            for case in growing(given, kind, compiled):
                found = measured(case)
                if found is None:
                    print(f"| {kind} | {compiled} | {case.batch} | did not run | | | |", flush=True)
                    break
                speed = case.batch / found["seconds"]
                share = f"{speed * OPERATIONS * 1e3 / rate:.2f}" if kind == "sd15" and not given.small else ""
                spent = f"{found['seconds']:.3f} | {speed:.2f} | {found['gigabytes']:.2f}"
                print(f"| {kind} | {compiled} | {case.batch} | {spent} | {share} |", flush=True)


def growing(given: argparse.Namespace, kind: str, compiled: bool) -> Iterator[Case]:
    """Batches that double; whoever takes them stops when one does not fit."""
    for power in range(1, 2 if given.small else 9):
        yield Case(
            kind=kind,
            weights="bfloat16",
            autocast=True,
            checkpointing=False,
            device=given.device,
            batch=2**power,
            resolution=64 if given.small else 512,
            steps=2 if given.small else 6,
            compiled=compiled,
        )


def measured(case: Case) -> dict[str, Any] | None:
    """In a process of its own; None if it fails, for want of memory mostly."""
    command = [sys.executable, str(HERE / "full_size.py"), "--case", json.dumps(asdict(case))]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=False)
    if done.returncode:
        print((done.stderr.strip().splitlines() or ["it said nothing"])[-1], file=sys.stderr)
        return None
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def _run(file: str, *arguments: str) -> None:
    sys.stdout.flush()
    subprocess.run([sys.executable, str(HERE / file), *arguments], check=False)


if __name__ == "__main__":
    main()
