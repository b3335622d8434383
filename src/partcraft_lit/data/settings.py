"""Settings of batches and prior images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.backbones.settings import Scheduler
from partcraft_lit.core.settings import Count, NonNegative, Positive, Seed, UserPath


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
