"""One resumable training loop for the embedded models, on one GPU or a few CPU cores.

Ours rather than Lightning's Trainer: batches are a function of the step alone, and a module with callbacks for the
curve, the warm-up of the averaged weights and checkpoints by the clock would be longer than this loop.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from partcraft_lit.world.pretrain.muon import Muon

Log = Callable[[str], None]
Optimizers = Sequence[torch.optim.Optimizer]
#: Steps between two lines of the curve, and between checks whether a checkpoint is due.
REPORT_EVERY = 50


@dataclass(frozen=True)
class LoopSettings:
    """How long and how fast.

    Attributes:
        steps: optimisation steps in all.
        batch_size: samples per step.
        lr: peak learning rate; warmed up, held, and let fall to zero over the last fifth.
        warmup: steps of warm-up.
        ema_decay: of the averaged weights that are kept in the end.
        save_every_s: seconds between checkpoints.
        device: "cpu" or "cuda".
        precision: "fp32" or "bf16" (autocast).
        optimizer: "adamw", or "muon" for weights of two and more dimensions with AdamW for all others and embeddings.
    """

    steps: int
    batch_size: int
    lr: float
    warmup: int
    ema_decay: float
    save_every_s: float
    precision: str
    device: str
    optimizer: str = "adamw"


def learning_rate(step: int, settings: LoopSettings) -> float:
    """Warm-up, constant, then linear to zero over the last fifth: a longer run resumes from a shorter one's plateau."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    fall = min(1.0, (settings.steps - step) / max(1.0, 0.2 * settings.steps))
    return settings.lr * rise * fall


def build_optimizers(
    model: nn.Module, settings: LoopSettings, ends: Iterable[nn.Module] = ()
) -> list[torch.optim.Optimizer]:
    """What ``settings.optimizer`` names.

    Args:
        model: what trains.
        settings: as given.
        ends: first and last layers of it, which AdamW trains in either case, as it does embeddings.

    Raises:
        ValueError: for an unknown name.
    """
    if settings.optimizer not in ("adamw", "muon"):
        raise ValueError(f"optimizer={settings.optimizer} is neither adamw nor muon.")
    tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    left_out = {id(one) for module in (*tables, *ends) for one in module.parameters()}
    muon = settings.optimizer == "muon"
    matrices = [one for one in model.parameters() if muon and one.ndim >= 2 and id(one) not in left_out]
    chosen = {id(one) for one in matrices}
    others = [one for one in model.parameters() if id(one) not in chosen]
    adamw = torch.optim.AdamW(others, lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.01)
    return [adamw, Muon(matrices, lr=settings.lr)] if matrices else [adamw]


def train_loop(
    model: nn.Module,
    loss: Callable[[int], tuple[Tensor, Mapping[str, float | Tensor]]],
    settings: LoopSettings,
    checkpoint: Path,
    log: Log,
    ends: Iterable[nn.Module] = (),
) -> nn.Module:
    """Trains ``model`` in place and returns the average of its weights.

    Args:
        model: what trains.
        loss: step number -> scalar loss and what to log, which is read now and then only, since a GPU waits for it;
            draws its data from the step number alone, so that a resumed run is the same run.
        settings: as given.
        checkpoint: file that is written atomically, and resumed from if it stands; a line per log goes to
            ``curve.jsonl`` beside it.
        log: where a line for people goes.
        ends: see ``build_optimizers``.

    Returns:
        A copy of ``model`` with exponentially averaged weights.
    """
    device = torch.device(settings.device)
    model.to(device).train()
    averaged = copy.deepcopy(model).requires_grad_(False)
    optimizers = build_optimizers(model, settings, ends)
    step = _resume(checkpoint, model, averaged, optimizers, log)
    curve = checkpoint.with_name("curve.jsonl")
    saved = logged = time.monotonic()
    first, mean = step, None
    while step < settings.steps:
        for group in itertools.chain.from_iterable(optimizer.param_groups for optimizer in optimizers):
            group["lr"] = learning_rate(step, settings)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
            value, numbers = loss(step)
        model.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        decay = min(settings.ema_decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 1 - decay)
        step += 1
        if step % REPORT_EVERY == 0 or step == settings.steps:
            now = time.monotonic()
            mean = float(value.detach()) if mean is None else 0.8 * mean + 0.2 * float(value.detach())
            if not math.isfinite(mean):
                raise FloatingPointError(f"The loss is {mean} at step {step}; lower lr (now {settings.lr}).")
            rate = (step - first) * settings.batch_size / (now - logged)
            read = {name: float(value) for name, value in numbers.items()}
            log(f"step {step}/{settings.steps}  loss {mean:.5f}  {rate:.0f} images/s  " + _numbers(read))
            line = {"step": step, "loss": mean, "images_per_s": rate, **read}
            with curve.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            first, logged = step, now
            if now - saved > settings.save_every_s:
                _save(checkpoint, step, model, averaged, optimizers)
                saved = now
    _save(checkpoint, step, model, averaged, optimizers)
    return averaged.eval()


def _numbers(numbers: dict[str, float]) -> str:
    return "  ".join(f"{key} {value:.4g}" for key, value in numbers.items())


def _save(path: Path, step: int, model: nn.Module, averaged: nn.Module, optimizers: Optimizers) -> None:
    temporary = path.with_suffix(".tmp")
    state = {
        "step": step,
        "model": model.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
    }
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _resume(path: Path, model: nn.Module, averaged: nn.Module, optimizers: Optimizers, log: Log) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    averaged.load_state_dict(state["averaged"])
    for optimizer, values in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(values)
    log(f"goes on at step {state['step']} of {path}")
    return int(state["step"])
