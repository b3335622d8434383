"""Many small entries in the store: ``python benchmarks/store.py [--entries 6000]``.

Beside it the same entries as one safetensors file each, which is how the store began. Entries are what the miniature
model's latents take; each is verified as it is read.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.store import Entry, Store, pack, stable_hash

KIND = "latents"


def entry(number: int) -> Entry:
    generator = torch.Generator().manual_seed(number)
    return {
        name: torch.rand(8, 16, 16, generator=generator).half()
        for name in ("mean", "std", "mean_flipped", "std_flipped")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=6000)
    given, _ = parser.parse_known_args()
    keys = [stable_hash(number) for number in range(given.entries)]
    entries = [entry(number) for number in range(64)]
    print(f"{given.entries} entries of {sum(t.numel() * 2 for t in entries[0].values())} bytes")
    print(f"{'':<20}{'files':>8}{'MB on disk':>12}{'write s':>9}{'open s':>8}{'CPU s':>8}")
    with tempfile.TemporaryDirectory() as folder:
        single, packed = Path(folder) / "single", Path(folder) / "packed"

        def write_single() -> None:
            for number, key in enumerate(keys):
                path = single / KIND / key[:2] / f"{key}.safetensors"
                atomic_write(path, pack(entries[number % 64], KIND, key), sync=False)

        def writepacked() -> None:
            store = Store(packed)
            for number, key in enumerate(keys):
                store.put(KIND, key, entries[number % 64])

        for name, root, write in (("one file each", single, write_single), ("packs", packed, writepacked)):
            wrote, _ = timed(write)
            opened, own = timed(lambda root=root: read_all(root, keys))
            files = [path for path in root.rglob("*") if path.is_file()]
            used = sum(path.stat().st_blocks * 512 for path in files) / 1e6
            print(f"{name:<20}{len(files):>8}{used:>12.1f}{wrote:>9.2f}{opened:>8.2f}{own:>8.2f}", flush=True)


def read_all(root: Path, keys: list[str]) -> None:
    store = Store(root)
    found: list[Entry] = []
    store.fill(KIND, keys, _missing, 1, on_entry=lambda index, entry: found.append(entry))
    assert len(found) == len(keys)


def _missing(positions: list[int]) -> list[Entry]:
    raise AssertionError(f"{len(positions)} entries are not there")


def timed(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock, and of the process."""
    os.sync()
    wall, own = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - own


if __name__ == "__main__":
    main()
