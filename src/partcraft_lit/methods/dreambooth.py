"""DreamBooth: fine-tunes the UNet on a rare word before a class noun, with prior preservation."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.core.errors import UserError
from partcraft_lit.methods.method import RunSettings
from partcraft_lit.methods.part_tokens import PartTokensRecipe


@dataclass(frozen=True)
class DreamBooth(PartTokensRecipe):
    """The method of Ruiz et al. (arXiv 2208.12242), with the whole UNet or an adapter.

    Source: the paper. Differs: captions have the dictionary's part tokens, which train.
    """

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """As for any part tokens.

        Raises:
            UserError: also if the UNet would not train, or captions have no class noun.
        """
        if self.unet == "none":
            raise UserError(
                "DreamBooth trains the UNet: set method.unet=full or method.unet=lora. For tokens alone take "
                "method=textual_inversion."
            )
        if not self.captions.class_noun:
            raise UserError(
                "DreamBooth needs a class noun behind its tokens: set method.captions.class_noun to auto, the noun of "
                "the dataset, to each, the name of each part, or to a word such as bird."
            )
        super().check(settings, class_noun)
