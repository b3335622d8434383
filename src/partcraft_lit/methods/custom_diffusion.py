"""Custom Diffusion: cross-attention keys and values train, beside the tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from partcraft_lit.backbones.settings import LoraSettings
from partcraft_lit.backbones.start_token import detach_start_token
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Backbone
from partcraft_lit.methods.method import MethodContext, RunSettings
from partcraft_lit.methods.part_tokens import PartTokensRecipe, Preparation
from partcraft_lit.tokens.captions import CaptionBuilder


@dataclass(frozen=True)
class CustomDiffusion(PartTokensRecipe):
    """The method of Kumari et al. (arXiv 2212.04488).

    Attributes:
        nouns: whether each token is followed by the name of its part, as a concept's token by its class noun; the same
            as ``captions.class_noun=each``.
        detach_start: whether keys and values of the start token are detached.

    Source: the paper and its released code. Differs: prior images have one prompt, or come from a folder, for all
    concepts; scaled images are drawn and encoded before training, see ``data.scale_variants``.
    """

    nouns: bool
    detach_start: bool

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """As for any part tokens.

        Raises:
            UserError: also if nothing of the UNet would train.
        """
        if self.unet == "none":
            raise UserError(
                f"method={self.name} trains the UNet: set method.unet=cross_kv, the keys and values of its "
                "cross-attention, or full. For tokens alone take method=textual_inversion."
            )
        super().check(settings, class_noun)

    def make_captions(self, context: MethodContext) -> CaptionBuilder:
        builder = super().make_captions(context)
        return replace(builder, nouns=self.nouns or builder.nouns)

    def preparation(self, lora: LoraSettings, seed: int) -> Preparation:
        release = super().preparation(lora, seed)

        def prepare(backbone: Backbone) -> None:
            release(backbone)
            if self.detach_start:
                detach_start_token(backbone.denoiser)

        return prepare
