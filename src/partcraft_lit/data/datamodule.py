"""The Lightning data module: batches that continue at the trainer's step."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from partcraft_lit.core import stopping
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import TokenizedPrompts, TrainingBatch, TrainingExample
from partcraft_lit.data.crops import Encode, encode_crops
from partcraft_lit.data.training_set import TrainingSet


class EndlessBatchSampler:
    """An infinite batch sampler over sample numbers.

    Micro-batch n holds samples n * world_size * batch_size onwards, batch_size of them per rank. So the sample numbers
    of a step do not depend on the number of processes.

    Args:
        start_batch: first micro-batch, or a function called at each start of an iteration: the trainer knows its step
            only after it has restored a checkpoint.
        batch_size: samples per process and micro-batch.
        rank: of this process.
        world_size: number of processes.
    """

    def __init__(
        self, start_batch: int | Callable[[], int], batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self._start_batch = start_batch
        self._batch_size = batch_size
        self._rank = rank
        self._world_size = world_size
        #: Micro-batch at which the last iteration began.
        self.started_at: int | None = None

    def __iter__(self) -> Iterator[list[int]]:
        start = self._start_batch() if callable(self._start_batch) else self._start_batch
        self.started_at = start
        return self._batches(start)

    def _batches(self, start: int) -> Iterator[list[int]]:
        for batch in itertools.count(start):
            first = (batch * self._world_size + self._rank) * self._batch_size
            yield list(range(first, first + self._batch_size))


class Collate:
    """Collates examples into a `TrainingBatch`; picklable, for spawned workers.

    Args:
        tokenize: captions -> ids.
        prior: if given, each example is paired with the prior example of the same number; these come last.
    """

    def __init__(
        self, tokenize: Callable[[list[str]], TokenizedPrompts], prior: Dataset[TrainingExample] | None = None
    ) -> None:
        self._tokenize = tokenize
        self._prior = prior

    def __call__(self, examples: Sequence[TrainingExample]) -> TrainingBatch:
        own = len(examples)
        if self._prior is not None:
            examples = [*examples, *(self._prior[example.sample_id] for example in examples)]
        prompts = [example.prompt for example in examples]
        return TrainingBatch(
            latents=torch.stack([example.latents for example in examples]),
            noise=torch.stack([example.noise for example in examples]),
            timesteps=torch.tensor([example.timestep for example in examples]),  # int64, or float32 for flow matching
            label_map=torch.stack([example.label_map for example in examples]),
            tokens=self._tokenize(prompts),
            prompts=prompts,
            sample_ids=torch.tensor([example.sample_id for example in examples], dtype=torch.long),
            image_ids=torch.tensor([example.image_id for example in examples], dtype=torch.long),
            prior=None if self._prior is None else torch.arange(len(examples)) >= own,
            loss_region=_regions(examples),
            crops=torch.tensor([example.crop for example in examples], dtype=torch.long),
            pixel_values=_pixels(examples),
        )


def _regions(examples: Sequence[TrainingExample]) -> Tensor | None:
    """(B, h, w), ones for examples without a region; None if no example has one."""
    if all(example.loss_region is None for example in examples):
        return None
    full = torch.ones(examples[0].latents.shape[-2:])
    return torch.stack([full if example.loss_region is None else example.loss_region for example in examples])


def _pixels(examples: Sequence[TrainingExample]) -> Tensor | None:
    """(n, 3, H, W) of the examples to encode; prior examples, which come last, are encoded already."""
    waiting = [example.pixel_values for example in examples if example.pixel_values is not None]
    return torch.stack(waiting) if waiting else None


class PartDataModule(LightningDataModule):
    """Endless training batches that continue at the trainer's step, with any number of workers.

    With several processes the trainer needs ``use_distributed_sampler=False``: batches are sharded here.

    Args:
        training_set: sample number -> example.
        tokenize: captions -> ids; the method's.
        batch_size: samples per process and micro-batch.
        num_workers: loader processes; 0 loads in the main process.
        accumulate_grad_batches: micro-batches per optimizer step, as given to the trainer.
        prior: prior examples, one to each of the training set; None for none.
        encode: (B, 3, H, W) in -1...1 -> posterior mean and standard deviation, for crops given as pixels.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(
        self,
        training_set: TrainingSet,
        tokenize: Callable[[list[str]], TokenizedPrompts],
        batch_size: int,
        num_workers: int,
        accumulate_grad_batches: int,
        prior: Dataset[TrainingExample] | None = None,
        encode: Encode | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("num_workers", num_workers, 0),
            ("accumulate_grad_batches", accumulate_grad_batches, 1),
        ):
            if value < least:
                raise UserError(f"{name} must be at least {least}, got {value}.")
        self._training_set = training_set
        self._collate = Collate(tokenize, prior)
        self._encode = encode
        self._batch_size = batch_size
        self._num_workers = num_workers
        self._accumulate = accumulate_grad_batches
        self._unchecked: EndlessBatchSampler | None = None

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self._trainer()
        if trainer.accumulate_grad_batches != self._accumulate:
            raise ValueError(
                f"accumulate_grad_batches is {self._accumulate} here and {trainer.accumulate_grad_batches} in the "
                f"trainer; give both the same."
            )
        batches = EndlessBatchSampler(self._start_batch, self._batch_size, trainer.global_rank, trainer.world_size)
        self._unchecked = batches
        if self._num_workers:
            # Rust tokenizers warn and disable parallelism when a process forks after they were used.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return DataLoader(
            self._training_set,
            batch_sampler=batches,
            collate_fn=self._collate,
            worker_init_fn=stopping.ignore,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # else each start would draw from the global generator
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copies asynchronously from pinned memory; Lightning does that for bare tensors, not custom batches."""
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Checks that the first batch belongs to the restored step.

        Reading ``trainer.estimated_stepping_batches`` before a checkpoint is restored starts the loader at step 0, and
        the run would silently train on the beginning of the data again.
        """
        if not self._trainer().training:
            return batch
        batches, self._unchecked = self._unchecked, None
        if batches is not None and batches.started_at != self._start_batch():
            raise RuntimeError(
                f"The loader was started for micro-batch {batches.started_at}, before the checkpoint at micro-batch "
                f"{self._start_batch()} was restored. Do not read trainer.estimated_stepping_batches in "
                f"configure_optimizers; take the number of steps from the settings."
            )
        return batch

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch if self._encode is None else encode_crops(batch, self._encode)

    def _start_batch(self) -> int:
        return int(self._trainer().global_step) * self._accumulate

    def _trainer(self) -> Any:
        if self.trainer is None:
            raise RuntimeError("PartDataModule makes batches for a trainer: pass it as datamodule to trainer.fit.")
        return self.trainer
