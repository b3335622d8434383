"""Settings of LoRA, sampling and memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from partcraft_lit.core.settings import NonNegative, Positive, Rate

#: "int8": weights as integers with a scale per row, computed with in the original dtype.
Quantization = Literal["int8"]
Scheduler = Literal["dpm++", "dpm++_trailing", "unipc", "ddim", "euler", "ddpm", "flow_euler", "flow_heun"]


@dataclass(frozen=True)
class LoraSettings:
    """LoRA on the UNet; ``alpha`` None means the rank."""

    rank: Positive
    alpha: Rate | None
    scope: Literal["cross", "all"]


@dataclass(frozen=True)
class SampleSettings:
    """Sampling of images."""

    steps: Annotated[int, Field(ge=1, le=1000)]  # no model has a longer noise schedule
    guidance_scale: NonNegative
    scheduler: Scheduler
    negative_prompt: str
    batch_size: Positive


def as_in_run(sample: SampleSettings, run: SampleSettings) -> SampleSettings:
    """Sampling with a run, by a command whose defaults are those of diffusion.

    Args:
        sample: of the command.
        run: of the run.

    Returns:
        ``sample``; for a run of flow matching, unless a sampler is named, with the run's sampler, steps and guidance.
    """
    if not run.scheduler.startswith("flow_") or sample.scheduler != "dpm++":
        return sample
    return replace(sample, scheduler=run.scheduler, steps=run.steps, guidance_scale=run.guidance_scale)


@dataclass(frozen=True)
class HardwareSettings:
    """What is done to fit into the memory of a device. None of it changes what is trained, but for rounding.

    Attributes:
        gradient_checkpointing: whether the UNet's activations are computed again in the backward pass.
        max_batch_size: images that go through the networks at once, prior images included; a larger batch is taken in
            several passes. One example and its prior image go together, even if it is 1.
        offload: networks that rest on the CPU while they are not needed: the VAE, which works before training and for
            samples, and that of the patch features. The text encoders stay: gradients of part tokens run through them.
        compile: whether the UNet's transformer blocks are compiled, which takes minutes at the start.
        quantize: of frozen linear layers, for backbones that refer to it.
    """

    gradient_checkpointing: bool
    max_batch_size: Positive | None
    offload: tuple[Literal["vae", "features"], ...]
    compile: bool
    quantize: Quantization | None = None

    def passes(self, batch_size: int, images_per_example: int = 1) -> int:
        """In how many equal passes a batch is taken: the fewest of at most ``max_batch_size`` images each.

        Args:
            batch_size: examples per step.
            images_per_example: 2 where a prior image goes with each; the two are never parted.
        """
        if self.max_batch_size is None:
            return 1
        most = max(self.max_batch_size // images_per_example, 1)
        return next(n for n in range(1, batch_size + 1) if batch_size % n == 0 and batch_size // n <= most)

    def capped(self, sample: SampleSettings) -> SampleSettings:
        """Sampling with at most ``max_batch_size`` images at once; each image is the same."""
        most = sample.batch_size if self.max_batch_size is None else min(sample.batch_size, self.max_batch_size)
        return replace(sample, batch_size=most)
