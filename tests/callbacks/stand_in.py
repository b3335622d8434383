"""A LightningModule with the methods that callbacks rely on, small enough to train in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from partcraft_lit.callbacks.binding import ProbePrompts
from partcraft_lit.core.types import LossTerm, StepOutput, TokenizedPrompts, TrainingBatch

PARTS, TOKENS, SIDE = 2, 2, 4


def make_batch(size: int = 3, seed: int = 0) -> TrainingBatch:
    generator = torch.Generator().manual_seed(seed)
    label_map = torch.zeros(size, SIDE, SIDE, dtype=torch.uint8)
    label_map[:, 1:3, :2], label_map[:, 1:3, 2:] = 1, 2
    tokens = TokenizedPrompts(
        input_ids=(torch.zeros(size, 7, dtype=torch.long),),
        part_positions=torch.tensor([[1, 2]]).expand(size, 2).clone(),
        part_ids=torch.tensor([[1, 2]]).expand(size, 2).clone(),
        code_ids=torch.zeros(size, 2, dtype=torch.long),
    )
    return TrainingBatch(
        latents=torch.randn(size, 3, 8, 8, generator=generator).clamp(-1, 1),
        noise=torch.randn(size, 3, 8, 8, generator=generator),
        timesteps=torch.zeros(size, dtype=torch.long),
        label_map=label_map,
        tokens=tokens,
        prompts=[f"<head:{i}> <wing:{i}>" for i in range(size)],
        sample_ids=torch.arange(size),
        image_ids=torch.arange(size),
    )


class Run:
    """What a run offers to its callbacks."""

    part_names = ("background", "head", "wing")

    def __init__(self, folder: Path, predictor: Any = None, remember: Any = None) -> None:
        self.folder, self.predictor, self._remember = folder, predictor, remember
        self.probe_prompts = ProbePrompts(["a <head:1>", "a <head:2> <wing:2>"], [11, 12], torch.zeros(2, 3).long())
        self.probe_batch = make_batch(size=2)

    def image_name(self, index: int) -> str:
        return f"{index}.png"

    def cached_grid(self, key: Any, draw: Any) -> Tensor:
        return draw() if self._remember is None else self._remember(key, draw)


def bound(callback: Any, folder: Path, **run: Any) -> Any:
    """The callback, bound to such a run."""
    callback.bind(Run(folder, **run))
    return callback


class Endless(IterableDataset[TrainingBatch]):
    def __init__(self, start: int = 0) -> None:
        self.start = start

    def __iter__(self) -> Iterator[TrainingBatch]:
        number = self.start
        while True:
            yield make_batch(seed=number)
            number += 1


class StandIn(LightningModule):
    """Learns one number per part token; its attention is the softmax of that over a fixed pattern."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(TOKENS, SIDE, SIDE))
        self.frozen = nn.Dropout(0.5).eval()
        self.backbone = SimpleNamespace(decode_latents=lambda latents: latents)
        self.terms: dict[str, LossTerm] = {}
        self.requests = 0
        self.history: list[str] = []
        self.generated: list[tuple[list[str], list[int]]] = []
        self.fail_to_generate = False
        self.seen: list[float] = []

    def add_loss_term(self, term: LossTerm) -> None:
        self.terms[term.name] = term
        self.history.append(f"add {term.name}")

    def remove_loss_term(self, name: str) -> None:
        del self.terms[name]
        self.history.append(f"remove {name}")

    def request_attention(self) -> None:
        self.requests += 1

    def release_attention(self) -> None:
        self.requests -= 1

    def attention(self, size: int) -> Tensor:
        return self.weight.flatten(1).softmax(dim=1).view(1, TOKENS, SIDE, SIDE).expand(size, -1, -1, -1)

    def probe_attention(self, batch: TrainingBatch) -> Tensor:
        assert not torch.is_grad_enabled()
        return self.attention(len(batch.image_ids))

    def generate(self, prompts: list[str], seeds: list[int], **settings: Any) -> Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        if self.fail_to_generate:
            raise RuntimeError("out of paint")
        torch.rand(3)  # takes from the global generator, as a careless sampler would
        self.generated.append((prompts, seeds))
        return torch.stack([torch.full((3, 8, 12), seed % 255, dtype=torch.uint8) for seed in seeds])

    def training_step(self, batch: TrainingBatch, batch_idx: int) -> Tensor:
        self.seen.append(float(batch.latents[0, 0, 0, 0]))
        maps = self.attention(len(batch.image_ids)) if self.requests else None
        step = StepOutput(batch, batch.latents, batch.noise, maps)
        diffusion = (batch.latents.mean() - self.weight.mean() + 0.1 * torch.rand(())) ** 2
        loss = diffusion
        for name, term in self.terms.items():
            value = term(step).mean()
            self.log(f"train/loss_{name}", value.detach())
            loss = loss + term.weight * value
        self.log("train/loss", loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(
    module: LightningModule,
    *callbacks: Callback,
    folder: Path,
    steps: int = 6,
    accumulate: int = 1,
    ckpt_path: Path | None = None,
    start: int = 0,
    logger: Any = False,
) -> Trainer:
    checkpointing = any("Checkpoints" in type(callback).__name__ for callback in callbacks)
    progress = any("Progress" in type(callback).__name__ for callback in callbacks)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        callbacks=list(callbacks),
        logger=logger,
        log_every_n_steps=1,
        enable_checkpointing=checkpointing,
        enable_progress_bar=progress,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    loader = DataLoader(Endless(start), batch_size=None)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=True)
    return trainer
