"""Settings of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import NonNegative, Rate

#: Normalisation of a masked loss: "latents" divides by all values of the latents, "region" by the sum of the mask.
RegionMean = Literal["latents", "region"]
#: How an attention loss weighs pixels of large and small parts.
Balance = Literal["none", "area", "hardest"]
#: Timesteps at which an attention loss counts: all alike, by the signal's share of the noisy latents, or the noise's.
TimestepWeight = Literal["all", "signal", "noise"]
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
        small_parts: exponent of the weight of small parts in the diffusion loss, see ``losses.area``; 0 for none.
        outlines: factor of the diffusion loss at outlines of parts.
        balance: attention loss of pixels alike ("none"), of parts alike ("area"), or most of the "hardest" parts.
        lambda_end: weight of the attention loss at the end of training, reached linearly; None for ``lambda_attn``.
        attention_timesteps: attention loss of "all" timesteps alike, or more of those with much "signal" or "noise".
        predictor: weight of the part predictor's loss on predicted clean latents; 0 for none.
    """

    lambda_attn: NonNegative
    attention: str
    snr_gamma: Rate | None
    snr_form: SnrForm
    unprompted: Literal["ignore", "released"]
    normalizer: Literal["parts", "softmax"]
    region: Literal["all", "prompted"]
    region_mean: RegionMean
    small_parts: NonNegative
    outlines: NonNegative
    balance: Balance
    lambda_end: NonNegative | None
    attention_timesteps: TimestepWeight
    predictor: NonNegative

    @property
    def uses_attention(self) -> bool:
        return self.attention != "none" and (self.lambda_attn > 0 or bool(self.lambda_end))

    @property
    def weighs_parts(self) -> bool:
        """Whether the diffusion loss depends on how large parts are, or where they end."""
        return self.small_parts != 0 or self.outlines != 1

    @property
    def reads_label_map(self) -> bool:
        """Whether a loss on latents asks where parts are."""
        return self.region == "prompted" or self.weighs_parts or self.predictor > 0
