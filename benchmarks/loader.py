"""How much of a step is spent waiting for data: ``python benchmarks/loader.py``.

Batches as training sees them: latents from a filled store, cut and mirrored, label maps, captions and their ids. Two
workers prepare them while the step sleeps, as a processor does that waits for a GPU. "CPU ms" is what a batch takes of
one core, "busy" the share of its time that each worker works for it. "waits" is how long the step still waits for its
batch, as a share of the step, over the last three quarters of the steps; "of ready ones" the same where workers hand
out a batch that they have ready, which is what other work on the machine costs any loader: compare the two.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from partcraft_lit.backbones.stable_diffusion import load_mini
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.types import TrainingBatch
from partcraft_lit.data.datamodule import Collate, EndlessBatchSampler
from partcraft_lit.data.latents import KIND, LatentTable
from partcraft_lit.data.training_set import TrainingSet
from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.tokenize import PromptTokenizer


@dataclass(frozen=True)
class Case:
    """A training run, as far as data is concerned."""

    name: str
    channels: int
    side: int
    attention_size: int
    batch_size: int
    step_s: float


#: The steps of the last two are shorter than any GPU's, so that data is asked of more than it will be.
CASES = (
    Case("mini, 64 px, held in memory", 8, 16, 16, 8, 0.150),
    Case("SD1.5, 512 px, held in memory", 4, 64, 16, 2, 0.100),
    Case("SD1.5, 512 px, read from the store", 4, 64, 16, 2, 0.100),
)


def training_set(case: Case, images: int, store: Store, vocabulary: PartVocabulary) -> TrainingSet:
    """Latents of images half as long again as they are high."""
    keys = [stable_hash(case.name, number) for number in range(images)]
    table = LatentTable(store, keys, memory_limit=0 if "store" in case.name else 2 << 30)
    shape = (case.channels, case.side, case.side * 3 // 2)
    for index, key in enumerate(keys):
        names = ("mean", "std", "mean_flipped", "std_flipped")
        entry = {name: torch.rand(shape).half() for name in names} | {"original_size": torch.tensor((800, 1200))}
        store.put(KIND, key, entry)
        table.hold(index, entry)
    maps = [torch.randint(0, 6, (16, 24), dtype=torch.uint8) for _ in range(images)]
    codes = torch.randint(0, 256, (images, 6))
    captions = CaptionBuilder(vocabulary, class_noun="bird")
    resolution = case.side * 8
    return TrainingSet(
        0, images, table, maps, codes, captions, resolution, 8, case.attention_size, 1000, flip=True, crop="random"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--workers", type=int, default=2)
    given, _ = parser.parse_known_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    vocabulary = PartVocabulary(("background", "head", "body", "wing", "leg", "tail"), (256,) * 6)
    tokenize = PromptTokenizer(vocabulary, load_mini().tokenizers)
    print(f"{given.images} images, {given.workers} workers\n")
    print("| | batch | step ms | CPU ms | busy | waits | of ready ones |\n|---|---|---|---|---|---|---|")
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="partcraft-loader-") as folder:
            examples = training_set(case, given.images, Store(folder), vocabulary)
            collate = Collate(tokenize)
            ready = _Ready(collate([examples[number] for number in range(case.batch_size)]))
            waits = [_waits(case, examples, collate, given), _waits(case, ready, ready.batch_of, given)]
            cpu = _cpu(case, examples, collate)
        cells = " | ".join(f"{share:.1%}" for share in (cpu / given.workers / case.step_s, *waits))
        print(f"| {case.name} | {case.batch_size} | {case.step_s * 1e3:.0f} | {cpu * 1e3:.1f} | {cells} |", flush=True)


class _Ready(Dataset[int]):
    """Numbers, of which any make the one batch that is there already."""

    def __init__(self, batch: TrainingBatch) -> None:
        self._batch = batch

    def __getitem__(self, number: int) -> int:
        return number

    def batch_of(self, numbers: Sequence[int]) -> TrainingBatch:
        return self._batch


def _waits(
    case: Case, examples: Dataset[Any], collate: Callable[[Any], TrainingBatch], given: argparse.Namespace
) -> float:
    sampler = EndlessBatchSampler(0, case.batch_size)
    loader = DataLoader(examples, batch_sampler=sampler, collate_fn=collate, num_workers=given.workers)
    batches, waited = iter(loader), []
    for _ in range(given.steps):
        asked = time.perf_counter()
        next(batches)
        waited.append(time.perf_counter() - asked)
        time.sleep(case.step_s)
    late = waited[given.steps // 4 :]
    return sum(late) / len(late) / case.step_s


def _cpu(case: Case, examples: TrainingSet, collate: Collate, batches: int = 20) -> float:
    """Seconds of this process for a batch, without workers."""
    started = time.process_time()
    for batch in range(batches):
        collate([examples[batch * case.batch_size + number] for number in range(case.batch_size)])
    return (time.process_time() - started) / batches


if __name__ == "__main__":
    main()
