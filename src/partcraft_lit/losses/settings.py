"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import NonNegative, Rate

#: Normalisation of a masked loss: "latents" divides by all values of the latents, "region" by the sum of the mask.
RegionMean = Literal["latents", "region"]
#: Min-SNR weights for v-prediction: those of the paper, or of PartCraft's "released" trainer.
SnrForm = Literal["published", "released"]


@dataclass(frozen=True)
class LossSettings:
    """The loss of a step: diffusion loss + ``lambda_attn`` times attention loss.

    Attributes:
        lambda_attn: weight of the attention loss.
        attention: name of the attention loss; "none" installs none.
        snr_gamma: gamma of min-SNR weighting; None weighs all timesteps equally.
        snr_form: min-SNR weights of v-prediction, as "published" or as in PartCraft's "released" code.
        unprompted: pixels of parts that are not in the prompt: "ignore" them, or "released" for the behaviour of the
            released code (a loss of 100 each).
        normalizer: attention is normalised over the "parts" of the prompt, or by the "softmax" over the text alone.
        region: mask of the diffusion loss: "all" latents, or those of the "prompted" parts.
        region_mean: the masked loss is divided by all values of the "latents", or by the sum of the "region"'s mask.
    """

    lambda_attn: NonNegative
    attention: str
    snr_gamma: Rate | None
    snr_form: SnrForm
    unprompted: Literal["ignore", "released"]
    normalizer: Literal["parts", "softmax"]
    region: Literal["all", "prompted"]
    region_mean: RegionMean

    @property
    def uses_attention(self) -> bool:
        return self.attention != "none" and self.lambda_attn > 0
