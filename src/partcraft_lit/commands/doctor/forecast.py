"""Forecasts of a run's time, memory and disk space."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from partcraft_lit.commands.doctor.settings import DoctorSettings
from partcraft_lit.core.images import clamp_aspect, to_unit
from partcraft_lit.core.types import Backbone, ImageSource, PatchFeatures
from partcraft_lit.runs.memory import images_per_example
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.step_probe import USABLE, StepProbe, examples_at_once, free_memory

#: Stages whose results further runs find in the store.
_STORED = ("patch features", "prior images", "latents")
#: A forward pass alone, as a share of a training step.
_FORWARD_SHARE = 1 / 3
#: Forward passes of a sampling step under classifier-free guidance.
_GUIDED = 2
#: Images whose aspect ratios stand for all.
_ASPECTS = 8


@dataclass(frozen=True)
class Forecast:
    """What a run would cost.

    Attributes:
        batch_size: examples that go through the networks at once.
        images_at_once: the same with their prior images.
        seconds_per_step, images_per_s: of training, a step being one pass of such a batch; prior images do not count.
        peak_bytes: memory while training.
        memory_bytes: what there is.
        measured: a step of the whole batch was measured; else it was too large, and one of a single example was.
        fits: the peak is below what may be planned with.
        advice: overrides that fit and change nothing but rounding; "" where none are needed or known.
        advice_bytes: peak with them, measured where this machine can; 0 without any.
        seconds: of the stages of the run that grow with the number of images or steps; the clustering of parts, whose
            length depends on the images, is not among them.
        runs: of a sweep; what is stored, parts and latents, is computed by the first.
    """

    batch_size: int
    images_at_once: int
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


def forecast(
    settings: TrainSettings,
    doctor: DoctorSettings,
    probe: StepProbe,
    source: ImageSource,
    features: PatchFeatures,
    trainer: Mapping[str, Any],
) -> Forecast:
    """Measures a step of one example, and one of the whole batch if that fits."""
    here = free_memory(probe.device)
    memory = doctor.memory_gb * 1e9 if doctor.memory_gb is not None else here
    per_example = images_per_example(settings)
    passes = settings.hardware.passes(settings.data.batch_size, per_example)
    size = settings.data.batch_size // passes
    base, one, seconds = probe.measure(1)
    peak, measured = base + size * (one - base), size == 1
    seconds *= size
    if not measured and peak < USABLE * min(memory, here):
        _, peak, seconds = probe.measure(size)
        measured = True
    fits = peak < USABLE * memory
    # Last, since it may leave the module with activations that are computed again.
    advice, advice_bytes = ("", 0.0) if fits else _advice(settings, probe, (base, one), memory, here)
    return Forecast(
        batch_size=size,
        images_at_once=size * per_example,
        seconds_per_step=seconds,
        images_per_s=size / seconds,
        peak_bytes=peak,
        memory_bytes=memory,
        measured=measured,
        fits=fits,
        advice=advice,
        advice_bytes=advice_bytes,
        seconds=_seconds(settings, probe, source, features, trainer, passes, seconds),
        runs=doctor.runs,
    )


def _seconds(
    settings: TrainSettings,
    probe: StepProbe,
    source: ImageSource,
    features: PatchFeatures,
    trainer: Mapping[str, Any],
    passes: int,
    step: float,
) -> dict[str, float]:
    """Per stage; ``step`` is that of one pass."""
    size = settings.data.batch_size // passes
    forward = _FORWARD_SHARE * step / (size * images_per_example(settings))  # of one image
    encode = _encode_seconds(probe.module.backbone)
    trained_passes = passes * int(trainer["accumulate_grad_batches"]) * max(int(trainer["max_steps"]), 0)
    stages = {
        "patch features": _seconds_per_image(lambda: features([source.image(0)])) * len(source),
        "prior images": sampled_priors(settings) * _GUIDED * settings.prior.steps * forward,
        "latents": 2 * encode * encoded_images(settings, len(source)),
        "training": trained_passes * (step + (size * encode if settings.data.crops == "encode" else 0.0)),
        "scores": sampled_for_scores(settings, len(source)) * _GUIDED * settings.sample.steps * forward,
    }
    return {stage: seconds for stage, seconds in stages.items() if seconds or stage != "prior images"}


def sampled_priors(settings: TrainSettings) -> int:
    """Prior images that the untrained model samples."""
    return settings.prior.images if settings.prior.weight and settings.prior.dir is None else 0


def encoded_images(settings: TrainSettings, images: int) -> int:
    """Images, crops, scaled views and prior images whose latents are cached, each with its mirror image."""
    data = settings.data
    each = {"cut": 1, "encode": 0}.get(str(data.crops))
    crops = images * (each if each is not None else 1 if data.crop == "center" else int(data.crops))
    return crops + images * data.scale_variants + _prior_images(settings)


def _prior_images(settings: TrainSettings) -> int:
    """Sampled, or the files of ``prior.dir``."""
    folder = settings.prior.dir
    if not settings.prior.weight or folder is None:
        return sampled_priors(settings)
    return sum(path.is_file() for path in folder.rglob("*"))


def sampled_for_scores(settings: TrainSettings, images: int) -> int:
    """Images sampled for reconstruction and composition, by the trained and by the untrained model."""
    scores = settings.eval
    if not scores.enabled:
        return 0
    most_species = min(settings.parts.M + 2, images)
    species = sum(number <= most_species for number in scores.species)
    protocols = [min(scores.reconstructions, images), *[scores.compositions] * species]
    return sum(number + min(number, scores.untrained) for number in protocols)


def stored_bytes(settings: TrainSettings, source: ImageSource, backbone: Backbone) -> float:
    """Latents and prior images in the store."""
    side = backbone.resolution // backbone.vae_scale_factor
    # mean and standard deviation, of the image and its mirror image
    entry = 4 * backbone.latent_channels * side**2 * {"float16": 2, "float32": 4}[settings.data.latents]
    squares = encoded_images(settings, len(source))
    whole = len(source) if settings.data.crops == "cut" else 0
    pixels = sampled_priors(settings) * 3 * backbone.resolution**2
    return entry * (squares - whole + whole * _mean_aspect(source)) + pixels


def _mean_aspect(source: ImageSource) -> float:
    """Longer side over shorter, of a few images spread over the source."""
    count = min(_ASPECTS, len(source))
    shapes = [clamp_aspect(source.image(index * len(source) // count)).shape[1:] for index in range(count)]
    return sum(max(shape) / min(shape) for shape in shapes) / max(count, 1)


def _advice(
    settings: TrainSettings, probe: StepProbe, one_example: tuple[float, float], memory: float, here: float
) -> tuple[str, float]:
    """Fewer images at once; then the same with activations that are computed again.

    Args:
        settings: of the run.
        probe: of its step.
        one_example: bytes before a step and at the peak of a step of one example.
        memory: bytes of the device that is planned for.
        here: bytes of this machine, on which nothing larger is tried.

    Returns:
        Overrides and the peak with them: measured, unless only the other device is large enough; "" and 0 if none fit.
    """
    prefix = ""
    if not settings.hardware.gradient_checkpointing:
        override, peak = _largest_that_fits(settings, probe, one_example, memory, here)
        if override:
            return override, peak
        prefix = "hardware.gradient_checkpointing=true "
        probe.checkpoint_activations()
        one_example = probe.measure(1)[:2]
    override, peak = _largest_that_fits(settings, probe, one_example, memory, here)
    return (prefix + override, peak) if override else ("", 0.0)


def _largest_that_fits(
    settings: TrainSettings, probe: StepProbe, one_example: tuple[float, float], memory: float, here: float
) -> tuple[str, float]:
    base, one = one_example
    per_example = images_per_example(settings)
    batch, most = settings.data.batch_size, examples_at_once(base, one, memory)
    while most:
        fewer = replace(settings.hardware, max_batch_size=most * per_example)
        size = batch // fewer.passes(batch, per_example)
        peak = base + size * (one - base)
        if size > 1 and peak < USABLE * here:
            peak = probe.measure(size).peak
        if peak < USABLE * memory:
            return f"hardware.max_batch_size={size * per_example}", peak
        most = size - 1  # the first example of a batch may cost less than the others
    return "", 0.0


def _encode_seconds(backbone: Backbone) -> float:
    parameter = next(backbone.vae.parameters())
    pixels = to_unit(torch.zeros(1, 3, backbone.resolution, backbone.resolution, dtype=torch.uint8))
    return _seconds_per_image(lambda: backbone.encode_images(pixels.to(parameter.device)))


def _seconds_per_image(work: Callable[[], Any]) -> float:
    work()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
