"""Batches are the same on any number of workers and processes, and start where the trainer stands."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils.data import Dataset

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import TokenizedPrompts, TrainingBatch
from partcraft_lit.data.datamodule import Collate, EndlessBatchSampler, PartDataModule
from partcraft_lit.data.training_set import TrainingExample

IMAGES = 7


class Samples(Dataset):
    """Stands for a training set: everything follows from the number."""

    def __getitem__(self, sample_id: int) -> TrainingExample:
        generator = torch.Generator().manual_seed(sample_id)
        return TrainingExample(
            latents=torch.randn(4, 2, 2, generator=generator),
            noise=torch.randn(4, 2, 2, generator=generator),
            timestep=sample_id % 1000,
            label_map=torch.full((2, 2), sample_id % 3, dtype=torch.uint8),
            codes=torch.zeros(3, dtype=torch.long),
            prompt=f"sample {sample_id}",
            sample_id=sample_id,
            image_id=sample_id % IMAGES,
            crop=(64, 48, 0, 2),
        )


def tokenize(prompts: list[str]) -> TokenizedPrompts:
    ids = torch.tensor([[int(prompt.split()[1])] for prompt in prompts])
    return TokenizedPrompts((ids,), ids, ids, ids)


class Recorder(LightningModule):
    """Trains one number and writes down what it is given."""

    def __init__(self, count_steps: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[list[int]] = []
        self.batches: list[TrainingBatch] = []
        self.count_steps = count_steps

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        self.seen.append(batch.sample_ids.tolist())
        self.batches.append(batch)
        return (self.weight - batch.latents.mean()).square().sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.count_steps:
            _ = self.trainer.estimated_stepping_batches
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    folder: Path, steps: int, *, workers: int = 0, accumulate: int = 1, resume: Path | None = None, **more: Any
) -> Recorder:
    more = {"max_epochs": -1, "count_steps": False} | more
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        use_distributed_sampler=False,
        **{name: value for name, value in more.items() if name != "count_steps"},
    )
    module = Recorder(more["count_steps"])
    data = PartDataModule(Samples(), tokenize, 3, workers, accumulate)  # type: ignore[arg-type]
    trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    if resume is None:
        trainer.save_checkpoint(folder / "at_end.ckpt")
    return module


def numbers(first: int, batches: int, size: int = 3) -> list[list[int]]:
    return [list(range(start, start + size)) for start in range(first, first + batches * size, size)]


def test_endless_batches_count_on_from_any_start() -> None:
    assert list(itertools.islice(EndlessBatchSampler(0, 2), 3)) == [[0, 1], [2, 3], [4, 5]]
    skipped = list(itertools.islice(EndlessBatchSampler(0, 3), 5, 9))
    assert list(itertools.islice(EndlessBatchSampler(5, 3), 4)) == skipped


def test_endless_batches_have_no_length_and_ask_for_the_start_each_time() -> None:
    starts = iter([4, 9])
    batches = EndlessBatchSampler(lambda: next(starts), 1)
    assert [next(iter(batches)), next(iter(batches))] == [[4], [9]]
    assert batches.started_at == 9
    with pytest.raises(TypeError):
        len(batches)  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batch_of_one_process(world: int) -> None:
    alone = itertools.islice(EndlessBatchSampler(2, 4 * world), 3)
    shared = [itertools.islice(EndlessBatchSampler(2, 4, rank, world), 3) for rank in range(world)]
    for whole, *pieces in zip(alone, *shared):
        assert whole == [number for piece in pieces for number in piece]
        for rank, piece in enumerate(pieces):
            assert all((number // 4) % world == rank for number in piece)


def test_collate_keeps_order_and_types() -> None:
    samples = Samples()
    batch = Collate(tokenize)([samples[number] for number in (4, 1002, 9)])
    assert batch.prompts == ["sample 4", "sample 1002", "sample 9"]
    assert batch.tokens.input_ids[0].tolist() == [[4], [1002], [9]]
    assert batch.sample_ids.tolist() == [4, 1002, 9]
    assert batch.image_ids.tolist() == [4, 1, 2]
    assert batch.timesteps.tolist() == [4, 2, 9]
    assert batch.timesteps.dtype == torch.int64
    assert batch.label_map.dtype == torch.uint8
    assert_close(batch.latents[1], samples[1002].latents)
    assert_close(batch.noise[2], samples[9].noise)


def test_workers_do_not_matter(tmp_path: Path) -> None:
    without, with_workers = fit(tmp_path, 4), fit(tmp_path, 4, workers=2)
    assert without.seen == with_workers.seen == numbers(0, 4)
    for first, second in zip(without.batches, with_workers.batches):
        assert first.prompts == second.prompts
        for name in ("latents", "noise", "timesteps", "label_map", "image_ids"):
            assert torch.equal(getattr(first, name), getattr(second, name))
        assert torch.equal(first.tokens.input_ids[0], second.tokens.input_ids[0])
    assert torch.equal(without.weight, with_workers.weight)


def test_a_run_that_was_stopped_continues_with_the_next_batch(tmp_path: Path) -> None:
    whole = fit(tmp_path, 6, accumulate=2)
    half = fit(tmp_path, 3, accumulate=2)
    rest = fit(tmp_path, 6, accumulate=2, workers=2, resume=tmp_path / "at_end.ckpt")
    assert whole.seen == half.seen + rest.seen == numbers(0, 12)
    assert torch.equal(whole.weight, rest.weight)


def test_epochs_by_a_limit_do_not_repeat_batches(tmp_path: Path) -> None:
    assert fit(tmp_path, 6, limit_train_batches=2).seen == numbers(0, 6)
    assert fit(tmp_path, 6, limit_train_batches=2, workers=1).seen == numbers(0, 6)


def test_a_loader_that_was_started_before_the_restore_is_caught(tmp_path: Path) -> None:
    fit(tmp_path, 2)
    with pytest.raises(RuntimeError, match=r"started for micro-batch 0, before the checkpoint at micro-batch 2 was"):
        fit(tmp_path, 4, resume=tmp_path / "at_end.ckpt", count_steps=True, max_epochs=1000)


def test_the_global_random_state_is_left_alone(tmp_path: Path) -> None:
    data = PartDataModule(Samples(), tokenize, 3, 0, 1)  # type: ignore[arg-type]
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    data.trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 5
    before = torch.get_rng_state()
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(torch.get_rng_state(), before)
    assert batch.sample_ids.tolist() == [15, 16, 17]
    assert data.train_dataloader().pin_memory is False


@pytest.mark.parametrize(
    "numbers_given, message",
    [
        ((0, 0, 1), "batch_size must be at least 1, got 0"),
        ((1, -1, 1), "num_workers must be at least 0, got -1"),
        ((1, 0, 0), "accumulate_grad_batches must be at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(numbers_given: tuple[int, int, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PartDataModule(Samples(), tokenize, *numbers_given)  # type: ignore[arg-type]


def test_it_needs_a_trainer_with_the_same_accumulation() -> None:
    data = PartDataModule(Samples(), tokenize, 3, 0, 2)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="makes batches for a trainer"):
        data.train_dataloader()
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(ValueError, match="accumulate_grad_batches is 2 here and 1 in the trainer"):
        data.train_dataloader()


def test_batches_do_not_wait_for_a_gpu_and_do_for_others() -> None:
    """Memory of a CPU may be reused by the loader as soon as the copy returns."""
    asked = []
    batch = SimpleNamespace(to=lambda device, non_blocking: asked.append((device.type, non_blocking)))
    data = PartDataModule(Samples(), tokenize, 3, 0, 1)  # type: ignore[arg-type]
    for device in ("cuda", "cpu", "mps"):
        data.transfer_batch_to_device(batch, torch.device(device), 0)
    assert asked == [("cuda", True), ("cpu", False), ("mps", False)]


def test_a_batch_moves_and_pins_as_a_whole() -> None:
    batch = Collate(tokenize)([Samples()[0]])
    moved = batch.to("meta")
    assert moved.latents.device.type == moved.tokens.input_ids[0].device.type == "meta"
    assert moved.prompts == batch.prompts
    assert callable(batch.pin_memory)


def test_a_batch_is_handed_over_as_one_buffer_and_is_the_same() -> None:
    """A loader's worker opens a file for each tensor that it hands over, which the step waits for."""
    batch = replace(
        Collate(tokenize)([Samples()[0], Samples()[1]]),
        prior=torch.tensor([True, False]),
        pixel_values=torch.empty((0, 3, 2, 2), dtype=torch.uint8),  # nothing of a tensor is something too
        label_map=torch.arange(6, dtype=torch.uint8).view(1, 2, 3).transpose(1, 2),  # not in the order of its memory
    )
    again = pickle.loads(pickle.dumps(batch))
    found, wanted = list(tensors_of(again)), list(tensors_of(batch))
    assert len(wanted) == len(found) > 10
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == other.dtype and torch.equal(one, other)
    assert len({tensor.untyped_storage().data_ptr() for tensor in found}) == 1
    assert again.prompts == batch.prompts and again.loss_region is None and again.tokens.part_weights is None


def tensors_of(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        yield from (tensor for field in fields(value) for tensor in tensors_of(getattr(value, field.name)))
    elif isinstance(value, tuple):
        yield from (tensor for item in value for tensor in tensors_of(item))
