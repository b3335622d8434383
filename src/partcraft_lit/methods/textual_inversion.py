"""Textual Inversion: token embeddings alone train."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.core.errors import UserError
from partcraft_lit.methods.method import RunSettings
from partcraft_lit.methods.part_tokens import PartTokensRecipe


@dataclass(frozen=True)
class TextualInversion(PartTokensRecipe):
    """The method of Gal et al. (arXiv 2208.01618).

    One embedding per part and code, learned from all images at once; the original is a dictionary of one part with one
    code, initialised from a word.
    """

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """As for any part tokens.

        Raises:
            UserError: also if the backbone would train, or with a mapper.
        """
        if self.unet != "none" or self.text_encoder:
            raise UserError(
                f"Textual Inversion trains nothing of the model, got method.unet={self.unet} and "
                f"method.text_encoder={str(self.text_encoder).lower()}. For tokens beside LoRA take method=partcraft."
            )
        # A vector per part (mapper.position) may be: the sum is still one free vector for each part variant.
        if settings.mapper.layers:
            raise UserError(
                f"Textual Inversion has no mapper, got mapper.layers={settings.mapper.layers}: set mapper.layers=0, or "
                "take method=partcraft."
            )
        super().check(settings, class_noun)
