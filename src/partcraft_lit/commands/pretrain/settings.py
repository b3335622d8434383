"""Settings of ``partcraft pretrain``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import Count, NonNegative, PathSettings, Positive, Rate, Seed, Share, UserPath


@dataclass(frozen=True)
class LoopLength:
    """How long and how fast an embedded network trains; see ``pretrain.loop.LoopSettings``."""

    steps: Positive
    batch_size: Positive
    lr: Rate
    warmup: Count
    ema_decay: Share
    precision: Literal["fp32", "bf16"]
    save_every_s: NonNegative
    optimizer: Literal["adamw", "muon"] = "adamw"


@dataclass(frozen=True)
class Pool:
    """Where training images of the denoisers come from; see ``pretrain.pool.PoolSettings``."""

    images: Positive | None
    workers: Positive
    folder: UserPath | None


@dataclass(frozen=True)
class PretrainSettings:
    """``partcraft pretrain``.

    Attributes:
        stage: which network: the text-to-image "model", the diffusion transformer "dit" in its place, the patch
            "features" or the "oracle" of the scores.
        seed: of images and first weights.
        output_dir: folder that the weights replace; None leaves them in the run folder.
        pool: where images of "model" and "dit" come from.
        autoencoder, denoiser, polish: of the model, one after the other.
        dit: of the diffusion transformer, on the packaged autoencoder.
        grounding_weight: of the loss by which the words of a part look at that part, in the denoiser; 0 for a base
            whose attention was never told, as Stable Diffusion's was not.
        features: of the patch features.
        oracle, oracle_missing: of the oracle, on whole creatures and then with parts missing.
        paths: where run folders are.
    """

    stage: Literal["model", "dit", "features", "oracle"]
    seed: Seed
    output_dir: UserPath | None
    pool: Pool
    autoencoder: LoopLength
    denoiser: LoopLength
    polish: LoopLength
    dit: LoopLength
    grounding_weight: NonNegative
    features: LoopLength
    oracle: LoopLength
    oracle_missing: LoopLength
    paths: PathSettings
