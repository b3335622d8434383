"""What the configuration says of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from partcraft_lit.core.settings import NonNegative, Rate


@dataclass(frozen=True)
class LossSettings:
    """The loss of a step: diffusion loss + ``lambda_attn`` times attention loss.

    Attributes:
        lambda_attn: weight of the attention loss.
        attention: which attention loss; "none" leaves no trace of one.
        snr_gamma: gamma of min-SNR weighting; None weighs all timesteps alike.
        unprompted: what happens at pixels of parts that are not in the prompt: "ignore" them, or "released" for the
            behaviour of the published code (100 for each).
        normalizer: among what a place's attention is normalised: the "parts" of the prompt, or all of the text.
        region: where the diffusion loss counts: "all" places, or those of the "prompted" parts.
        region_mean: what the error of a region is divided by: all "latents", or the size of the "region".
    """

    lambda_attn: NonNegative
    attention: str
    snr_gamma: Rate | None
    unprompted: Literal["ignore", "released"]
    normalizer: Literal["parts", "softmax"]
    region: Literal["all", "prompted"]
    region_mean: Literal["latents", "region"]

    @property
    def uses_attention(self) -> bool:
        return self.attention != "none" and self.lambda_attn > 0
