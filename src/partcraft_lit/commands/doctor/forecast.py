"""What a run would cost, from steps that are measured on data that is drawn at random."""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from partcraft_lit.commands.doctor.settings import DoctorSettings
from partcraft_lit.commands.train.assembly import assemble
from partcraft_lit.commands.train.settings import TrainSettings
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.types import Backbone, ImageSource, PatchFeatures, TrainingBatch, TrainingExample
from partcraft_lit.data.datamodule import Collate
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.tokens.grammar import PartVocabulary

#: Share of the memory that may be planned with; the rest is for what allocators cannot use.
_USABLE = 0.9
#: Stages whose results further runs find in the store.
_STORED = ("patch features", "latents")
#: A forward pass alone, as a share of a training step.
_FORWARD_SHARE = 1 / 3


@dataclass(frozen=True)
class Forecast:
    """What a run would cost.

    Attributes:
        batch_size: images that go through the networks at once.
        seconds_per_step, images_per_s: of training, a step being one pass of such a batch.
        peak_bytes: memory while training.
        memory_bytes: what there is.
        measured: a step of the whole batch was measured; else it was too large, and one of a single image was.
        fits: the peak is below what may be planned with.
        advice: overrides that fit and change nothing but rounding; "" where none are needed or known.
        advice_bytes: peak with them, measured where this machine can; 0 without any.
        seconds: of the stages of the run that grow with the number of images, steps or images; the clustering of
            parts, whose length depends on what is found, is not among them.
        runs: of a sweep; what is stored, parts and latents, is computed by the first.
    """

    batch_size: int
    seconds_per_step: float
    images_per_s: float
    peak_bytes: float
    memory_bytes: float
    measured: bool
    fits: bool
    advice: str
    advice_bytes: float
    seconds: dict[str, float]
    runs: int

    @property
    def total_seconds(self) -> float:
        """Of all runs, one after another."""
        each = sum(seconds for stage, seconds in self.seconds.items() if stage not in _STORED)
        return sum(self.seconds.values()) + (self.runs - 1) * each

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def probe_module(
    settings: TrainSettings, backbone: Backbone, class_noun: str, make_attention_loss: Callable[..., Any] | None
) -> PersonalizationModule:
    """The module that the run would train, with as many parts and codes as it asks for."""
    parts = settings.parts
    names = parts.names if len(parts.names) == parts.M else tuple(f"part{part}" for part in range(1, parts.M + 1))
    vocabulary = PartVocabulary(("background", *names), (parts.K,) * (parts.M + 1))
    module = assemble(settings, vocabulary, backbone, class_noun)
    module.log_dict = lambda *args, **kwargs: None  # type: ignore[method-assign]  # there is no trainer to log to
    if make_attention_loss is not None:
        module.request_attention()
        module.add_loss_term(make_attention_loss(num_parts=parts.M).term)
    return module


def forecast(
    settings: TrainSettings,
    doctor: DoctorSettings,
    module: PersonalizationModule,
    source: ImageSource,
    features: PatchFeatures,
    trainer: Mapping[str, Any],
) -> Forecast:
    """Measures a step of one image, and one of the whole batch if that fits."""
    device = next(module.backbone.unet.parameters()).device
    here = free_memory(device)
    memory = doctor.memory_gb * 1e9 if doctor.memory_gb is not None else here
    passes = settings.hardware.passes(settings.data.batch_size)
    size, precision = settings.data.batch_size // passes, str(trainer["precision"])
    base, one, seconds = measure(module, 1, precision)
    peak, measured = base + size * (one - base), size == 1
    seconds *= size
    if not measured and peak < _USABLE * min(memory, here):
        _, peak, seconds = measure(module, size, precision)
        measured = True
    fits = peak < _USABLE * memory
    # Last, since it may leave the module with activations that are computed again.
    advice, advice_bytes = ("", 0.0) if fits else _advice(settings, module, (base, one), memory, here, precision)
    accumulate = passes * int(trainer["accumulate_grad_batches"])
    return Forecast(
        batch_size=size,
        seconds_per_step=seconds,
        images_per_s=size / seconds,
        peak_bytes=peak,
        memory_bytes=memory,
        measured=measured,
        fits=fits,
        advice=advice,
        advice_bytes=advice_bytes,
        seconds={
            "patch features": _seconds_per_image(lambda: features([source.image(0)])) * len(source),
            "latents": 2 * _encode_seconds(module.backbone) * len(source),
            "training": seconds * accumulate * max(int(trainer["max_steps"]), 0),
            "scores": _drawn(settings) * 2 * settings.sample.steps * _FORWARD_SHARE * seconds / size,
        },
        runs=doctor.runs,
    )


def _advice(
    settings: TrainSettings,
    module: PersonalizationModule,
    one_image: tuple[float, float],
    memory: float,
    here: float,
    precision: str,
) -> tuple[str, float]:
    """Fewer images at once; then the same with activations that are computed again.

    Args:
        settings, module, precision: of the run.
        one_image: bytes before a step and at the peak of a step of one image.
        memory: bytes of the device that is planned for.
        here: bytes of this machine, on which nothing larger is tried.

    Returns:
        Overrides and the peak with them: measured, unless only the other device is large enough; "" and 0 if none fit.
    """
    prefix = ""
    if not settings.hardware.gradient_checkpointing:
        found, peak = _largest_that_fits(settings, module, one_image, memory, here, precision)
        if found:
            return found, peak
        prefix = "hardware.gradient_checkpointing=true "
        module.backbone.enable_gradient_checkpointing()
        one_image = measure(module, 1, precision)[:2]
    found, peak = _largest_that_fits(settings, module, one_image, memory, here, precision)
    return (prefix + found, peak) if found else ("", 0.0)


def _largest_that_fits(
    settings: TrainSettings,
    module: PersonalizationModule,
    one_image: tuple[float, float],
    memory: float,
    here: float,
    precision: str,
) -> tuple[str, float]:
    base, one = one_image
    batch, most = settings.data.batch_size, images_at_once(base, one, memory)
    while most:
        size = batch // replace(settings.hardware, max_batch_size=most).passes(batch)
        peak = base + size * (one - base)
        if size > 1 and peak < _USABLE * here:
            peak = measure(module, size, precision)[1]
        if peak < _USABLE * memory:
            return f"hardware.max_batch_size={size}", peak
        most = size - 1  # the first image of a batch may cost less than the others
    return "", 0.0


def images_at_once(base: float, one: float, memory: float) -> int:
    """How many images fit through the networks at once; 0 if not one does.

    Args:
        base: bytes of weights and all else that is there before a step.
        one: bytes at the peak of a step of one image.
        memory: bytes there are.
    """
    return max(int((_USABLE * memory - base) // max(one - base, 1.0)), 0)


def _drawn(settings: TrainSettings) -> int:
    scores = settings.eval
    if not scores.enabled:
        return 0
    return scores.reconstructions + scores.compositions * len(scores.species) + 2 * scores.untrained


def measure(module: PersonalizationModule, size: int, precision: str) -> tuple[float, float, float]:
    """Two steps: the bytes before them, those at the peak, and the seconds of the second."""
    device = next(module.backbone.unet.parameters()).device
    module.to(device).train()
    trained = [p for p in module.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    optimizer = torch.optim.AdamW(trained, lr=1e-8)
    batch = _random_batch(module, size).to(device)
    base = _start_peak(device)
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        with _autocast(device, precision):
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
    return base, max(peak, base), seconds


def _random_batch(module: PersonalizationModule, size: int) -> TrainingBatch:
    backbone, generator = module.backbone, torch.Generator().manual_seed(0)
    side = backbone.resolution // backbone.vae_scale_factor
    shape = (backbone.latent_channels, side, side)
    vocabulary = module.method.vocabulary
    codes = torch.zeros(vocabulary.num_parts + 1, dtype=torch.long)
    examples = [
        TrainingExample(
            latents=torch.randn(shape, generator=generator),
            noise=torch.randn(shape, generator=generator),
            timestep=500,
            label_map=torch.randint(len(codes), (backbone.attention_size,) * 2, generator=generator).to(torch.uint8),
            codes=codes,
            prompt=module.method.make_caption(codes, generator),
            sample_id=number,
            image_id=number,
            crop=(backbone.resolution, backbone.resolution, 0, 0),
        )
        for number in range(size)
    ]
    return Collate(module.method.tokenize)(examples)


def _encode_seconds(backbone: Backbone) -> float:
    parameter = next(backbone.vae.parameters())
    pixels = to_unit(torch.zeros(1, 3, backbone.resolution, backbone.resolution, dtype=torch.uint8))
    return _seconds_per_image(lambda: backbone.encode_images(pixels.to(parameter.device)))


def _seconds_per_image(work: Callable[[], Any]) -> float:
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _autocast(device: torch.device, precision: str) -> torch.autocast:
    dtype = torch.float16 if precision.startswith("16") else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision.endswith("mixed"))


def free_memory(device: torch.device) -> float:
    """Bytes that a run could have: what is free, and what this process holds already."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    with suppress(OSError):
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
        if found is not None:
            return int(found[1]) * 1024.0 + _status("VmRSS")
    with suppress(ValueError, AttributeError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    return math.inf


def _start_peak(device: torch.device) -> float:
    """Forgets the highest use so far; returns that of now."""
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
        found = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        return int(found[1]) * 1024.0 if found else 0.0
    return 0.0


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
