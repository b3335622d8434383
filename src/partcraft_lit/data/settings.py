"""What the configuration says of batches and prior images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from partcraft_lit.backbones.settings import Scheduler
from partcraft_lit.core.settings import Count, NonNegative, Positive


@dataclass(frozen=True)
class DataSettings:
    """From images to batches.

    Attributes:
        batch_size: images per step and process.
        num_workers: processes that prepare batches; it changes no batch.
        flip: whether images are mirrored at random.
        crop: "random" or "center".
        crops: "cut": from the latents of the whole image; a number: so many crops of each image are encoded by
            themselves before training; "encode": each crop when its batch is trained on, and nothing is stored.
        present_only: whether captions leave out parts that the crop cut away.
        encode_batch_size: images per pass through the autoencoder when latents are stored.
        latents: number format of the stored latents.
        scale_variants: renderings of each image at other scales, drawn and encoded before training, that take its
            place; 0 trains on the images as they are.
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
    """Prior preservation: images without parts that the model must go on to draw as it did.

    Attributes:
        weight: of their diffusion loss, lambda; 0 for no prior images.
        prompt: what they show, such as "a photo of a bird"; "auto" is that with the noun of the dataset.
        images: how many the untrained model draws, once.
        dir: a folder of images to take instead.
        seed: of the first; image i has ``seed + i``.
        steps, guidance_scale, scheduler: how they are drawn.
        batch_size: how many are drawn at once.
    """

    weight: NonNegative
    prompt: str
    images: Positive
    dir: Path | None
    seed: int
    steps: Positive
    guidance_scale: NonNegative
    scheduler: Scheduler
    batch_size: Positive
