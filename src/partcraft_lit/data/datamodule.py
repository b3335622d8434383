"""Batches for training, from the step that the trainer stands at."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import TokenizedPrompts, TrainingBatch, TrainingExample
from partcraft_lit.data.crops import Encode, encode_crops
from partcraft_lit.data.training_set import TrainingSet


class EndlessBatches:
    """Yields the sample numbers of batch after batch, for ever; a batch sampler without a length.

    Micro-batch n of all processes together holds samples n * world_size * batch_size onwards, and each process takes
    its turn of batch_size. So the sample numbers of a step do not depend on how many processes share it.

    Args:
        start_batch: first micro-batch, or a function that is asked for it at each start of an iteration: the trainer
            knows its step only after it has restored a checkpoint.
        batch_size: samples per process and micro-batch.
        rank: number of this process.
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


def endless_batches(
    start_batch: int | Callable[[], int], batch_size: int, rank: int = 0, world_size: int = 1
) -> EndlessBatches:
    """See `EndlessBatches`."""
    return EndlessBatches(start_batch, batch_size, rank, world_size)


class Collate:
    """Examples -> `TrainingBatch`; an object, so that it reaches workers that are started afresh.

    Args:
        tokenize: captions -> ids.
        prior: if given, each example is joined by the prior example of the same number; these come last.
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
            timesteps=torch.tensor([example.timestep for example in examples], dtype=torch.long),
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
    """(B, h, w), ones for examples without a region; None if none has one."""
    if all(example.loss_region is None for example in examples):
        return None
    full = torch.ones(examples[0].latents.shape[-2:])
    return torch.stack([full if example.loss_region is None else example.loss_region for example in examples])


def _pixels(examples: Sequence[TrainingExample]) -> Tensor | None:
    """(n, 3, H, W) of the examples that are still to be encoded; prior ones, which come last, never are."""
    waiting = [example.pixel_values for example in examples if example.pixel_values is not None]
    return torch.stack(waiting) if waiting else None


class PartDataModule(LightningDataModule):
    """Endless training batches that continue where the trainer's step says, on any number of workers.

    With several processes the trainer needs ``use_distributed_sampler=False``: batches are already dealt out here.

    Args:
        training_set: sample number -> example.
        tokenize: captions -> ids, as the method does it.
        batch_size: samples per process and micro-batch.
        num_workers: loader processes; 0 loads in the main process.
        accumulate_grad_batches: micro-batches per step, as given to the trainer.
        prior: prior examples, one to each of the training set; None for none.
        encode: (B, 3, H, W) in -1...1 -> mean and deviation of the posterior, for crops that are not encoded yet.

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
        self._unchecked: EndlessBatches | None = None

    def train_dataloader(self) -> DataLoader[Any]:
        trainer = self._trainer()
        if trainer.accumulate_grad_batches != self._accumulate:
            raise ValueError(
                f"accumulate_grad_batches is {self._accumulate} here and {trainer.accumulate_grad_batches} in the "
                f"trainer; give both the same."
            )
        batches = endless_batches(self._start_batch, self._batch_size, trainer.global_rank, trainer.world_size)
        self._unchecked = batches
        if self._num_workers:
            # Rust tokenizers warn, and stop being parallel, when a process forks after they were used.
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        return DataLoader(
            self._training_set,
            batch_sampler=batches,
            collate_fn=self._collate,
            num_workers=self._num_workers,
            persistent_workers=self._num_workers > 0,
            pin_memory=trainer.strategy.root_device.type == "cuda",
            generator=torch.Generator(),  # else each start draws from the global one, which is not the loader's
        )

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Copies while the device still works on the step before: the loader's memory is pinned, nothing waits.

        Lightning asks for that with bare tensors only, not with batches of our own.
        """
        return batch.to(device, non_blocking=device.type == "cuda")

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Makes sure that the first batch is the one that the restored step calls for.

        Reading ``trainer.estimated_stepping_batches`` before a checkpoint is restored starts the loader at step 0, and
        the run would train on the beginning of the data again without a word.
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
