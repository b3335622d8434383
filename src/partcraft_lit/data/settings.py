"""Settings of batches and prior images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.backbones.settings import Scheduler
from partcraft_lit.core.settings import Count, NonNegative, Positive, Rate, Seed, Share, UserPath


@dataclass(frozen=True)
class MixSettings:
    """What is changed in the parts of training samples; see ``data.part_mixing``.

    Attributes:
        recompose: share of samples into which parts of other images are pasted.
        most_parts: most parts that are pasted into one.
        candidates: images of which the best fitting one gives its part.
        seam: latents to either side of a seam that do not count in the loss.
        swap: share of samples in whose captions some parts have the tokens of other images, and do not count.
        drop: share of samples whose captions lack some parts, which do not count.
        degrade: standard deviation of the noise on latents that do not count; it decays.
    """

    recompose: Share
    most_parts: Positive
    candidates: Positive
    seam: Count
    swap: Share
    drop: Share
    degrade: NonNegative

    @property
    def is_used(self) -> bool:
        return bool(self.recompose or self.swap or self.drop or self.degrade)


@dataclass(frozen=True)
class DataSettings:
    """From images to batches.

    Attributes:
        batch_size: images per step and process.
        num_workers: loader processes; batches do not depend on it.
        flip: random horizontal flips.
        crop: "random" or "center".
        crops: "cut" crops the latents of the whole image; a number encodes that many crops per image before training;
            "encode" encodes each crop in the training step, without a cache.
        present_only: whether captions omit parts that the crop cut away.
        encode_batch_size: images per VAE pass when latents are cached.
        latents: dtype of the cached latents.
        scale_variants: scaled renderings that replace each image, encoded before training; 0 for none.
        mix: changes in the parts of samples.
        empty_captions: share of samples with an empty caption, for classifier-free guidance.
        timestep_shift: above 1 draws more noisy timesteps, below 1 fewer; 1 is uniform.
    """

    batch_size: Positive
    num_workers: Count
    flip: bool
    crop: Literal["random", "center"]
    crops: Positive | Literal["cut", "encode"]
    present_only: bool
    encode_batch_size: Positive
    latents: Literal["float16", "float32"]
    scale_variants: Count
    mix: MixSettings
    empty_captions: Share
    timestep_shift: Rate


@dataclass(frozen=True)
class PriorSettings:
    """Prior preservation (DreamBooth).

    Attributes:
        weight: of their diffusion loss, lambda; 0 for no prior images.
        prompt: such as "a photo of a bird"; "auto" is that with the dataset's class noun.
        images: number of images sampled by the untrained model.
        dir: a folder of images to use instead.
        seed: of the first; image i has ``seed + i``.
        steps, guidance_scale, scheduler: of sampling.
        batch_size: images sampled at once.
    """

    weight: NonNegative
    prompt: str
    images: Positive
    dir: UserPath | None
    seed: Seed
    steps: Positive
    guidance_scale: NonNegative
    scheduler: Scheduler
    batch_size: Positive
