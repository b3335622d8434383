"""Training steps on random data, measured: seconds and memory."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from partcraft_lit.callbacks.loss_terms import AttentionLoss
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Backbone, TrainingBatch, TrainingExample
from partcraft_lit.data.datamodule import Collate
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.runs.assembly import assemble
from partcraft_lit.runs.memory import images_per_example
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.tokens.grammar import PartVocabulary

#: Share of the memory that may be planned with; the rest is for what allocators cannot use.
USABLE = 0.9
#: Images at once from which on a step is measured before a run: more than people train with.
_UNUSUAL = 256


class Measured(NamedTuple):
    """Bytes before a step and at its peak, and its seconds."""

    base: float
    peak: float
    seconds: float


@dataclass
class StepProbe:
    """Training steps of the module that a run would train.

    Attributes:
        module: with the run's losses.
        precision: the trainer's.
        with_prior: each example goes with a prior image.
    """

    module: PersonalizationModule
    precision: str
    with_prior: bool

    @classmethod
    def of(
        cls,
        settings: TrainSettings,
        backbone: Backbone,
        class_noun: str,
        attention_loss: AttentionLoss | None,
        precision: str,
    ) -> StepProbe:
        """A probe of the settings' module, with as many parts and codes as they ask for."""
        parts = settings.parts
        names = parts.names or tuple(f"part{part}" for part in range(1, parts.M + 1))
        vocabulary = PartVocabulary(("background", *names), (parts.K,) * (parts.M + 1))
        module = assemble(settings, vocabulary, backbone, class_noun)
        module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
        if attention_loss is not None:
            attention_loss.set_num_parts(parts.M)
            module.request_attention()
            module.add_loss_term(attention_loss.term)
        return cls(module, precision, images_per_example(settings) > 1)

    @property
    def device(self) -> torch.device:
        return next(self.module.backbone.denoiser.parameters()).device

    def measure(self, examples: int) -> Measured:
        """The second of two steps of so many examples; the weights stay as they were."""
        module, device = self.module, self.device
        module.to(device).train()
        trained = [p for p in module.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        optimizer = torch.optim.AdamW(trained, lr=1e-8)
        batch = self.random_batch(examples).to(device)
        base = _start_peak(device)
        seconds = 0.0
        for _ in range(2):
            start = time.perf_counter()
            with _autocast(device, self.precision):
                loss = module.training_step(batch, 0)
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            _wait(device)
            seconds = time.perf_counter() - start
        peak = _peak(device)
        with torch.no_grad():
            for parameter, value in zip(trained, before, strict=True):
                parameter.copy_(value)
        return Measured(base, max(peak, base), seconds)

    def checkpoint_activations(self) -> None:
        """From now on activations are computed again in the backward pass."""
        self.module.backbone.enable_gradient_checkpointing()

    def random_batch(self, examples: int) -> TrainingBatch:
        """A batch of so many examples, and as many prior images if the run has such."""
        backbone, generator = self.module.backbone, torch.Generator().manual_seed(0)
        side = backbone.resolution // backbone.vae_scale_factor
        shape = (backbone.latent_channels, side, side)
        method = self.module.method
        codes = torch.zeros(method.vocabulary.num_parts + 1, dtype=torch.long)
        drawn = [
            TrainingExample(
                latents=torch.randn(shape, generator=generator),
                noise=torch.randn(shape, generator=generator),
                timestep=500,
                label_map=torch.randint(len(codes), (backbone.attention_size,) * 2, generator=generator).to(
                    torch.uint8
                ),
                codes=codes,
                prompt=method.make_caption(codes, generator),
                sample_id=number,
                image_id=number,
                crop=(backbone.resolution, backbone.resolution, 0, 0),
            )
            for number in range(examples)
        ]
        prior = [replace(example, prompt="a photo of an object") for example in drawn] if self.with_prior else None
        return Collate(method.tokenize, prior)(drawn)  # type: ignore[arg-type]  # a list serves as the Dataset


def examples_at_once(base: float, one: float, memory: float) -> int:
    """How many examples fit through the networks at once; 0 if not one does.

    Args:
        base: bytes of weights and all else that is there before a step.
        one: bytes at the peak of a step of one example.
        memory: bytes there are.
    """
    return max(int((USABLE * memory - base) // max(one - base, 1.0)), 0)


def check_batch_fits(
    settings: TrainSettings, load_backbone: Callable[[], Backbone], class_noun: str, precision: str
) -> None:
    """For a batch of unusual size: a step of one example tells what all of them would take.

    Args:
        settings: of the run.
        load_backbone: loads one that is thrown away, for the step adds an adapter.
        class_noun: the data set's own noun.
        precision: the trainer's.

    Raises:
        UserError: if this machine does not have so much memory.
    """
    per_example = images_per_example(settings)
    size = settings.data.batch_size // settings.hardware.passes(settings.data.batch_size, per_example)
    if size * per_example < _UNUSUAL:
        return
    probe = StepProbe.of(settings, load_backbone(), class_noun, None, precision)
    memory = free_memory(probe.device)
    base, one, _ = probe.measure(1)
    needed, most = base + size * (one - base), examples_at_once(base, one, memory)
    if needed < memory:
        return
    fewer = f"hardware.max_batch_size={most * per_example} takes the batch in passes of what fits. " if most else ""
    raise UserError(
        f"data.batch_size={settings.data.batch_size}: by a step of one example, {size * per_example:,} images at once "
        f"take {needed / 1e9:,.0f} GB, and {memory / 1e9:,.0f} are free here. {fewer}'partcraft doctor' says more."
    )


def free_memory(device: torch.device) -> float:
    """Bytes that a run could have: what is free, and what this process holds already."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    with suppress(OSError):
        match = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
        if match is not None:
            return int(match[1]) * 1024.0 + _status("VmRSS")
    with suppress(ValueError, AttributeError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return math.inf


def _start_peak(device: torch.device) -> float:
    """Resets the peak memory statistics; returns the memory in use."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return float(torch.cuda.memory_allocated(device))
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    return _status("VmRSS")


def _peak(device: torch.device) -> float:
    return float(torch.cuda.max_memory_allocated(device)) if device.type == "cuda" else _status("VmHWM")


def _status(name: str) -> float:
    with suppress(OSError):
        match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        return int(match[1]) * 1024.0 if match else 0.0
    return 0.0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision.endswith("mixed"))
