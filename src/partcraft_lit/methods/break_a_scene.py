"""Break-a-Scene: union sampling of parts; tokens train first, then the model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from partcraft_lit.core.errors import UserError
from partcraft_lit.methods.method import MethodContext, RunSettings
from partcraft_lit.methods.part_tokens import PartTokensRecipe
from partcraft_lit.tokens.captions import CaptionBuilder, Subset


@dataclass(frozen=True)
class BreakAScene(PartTokensRecipe):
    """The method of Avrahami et al. (arXiv 2305.16311).

    Its components are settings: ``subset`` here, ``loss.region=prompted``, ``loss.attention=mse`` and
    ``optim.phases``.

    Attributes:
        subset: parts named in a caption: "union" draws how many, then which; "all".

    Source: the paper and its released code. Differs: tokens are frozen in the second phase; the released code trains
    them on at the rate of the text encoder, 2e-6.
    """

    subset: Subset

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """As for any part tokens.

        Raises:
            UserError: also if parts would be left out twice.
        """
        if self.subset == "union" and self.captions.drop_prob:
            raise UserError(
                f"method.captions.drop_prob={self.captions.drop_prob}: method.subset=union draws which parts a caption "
                "names. Set drop_prob to 0, or method.subset=all."
            )
        super().check(settings, class_noun)

    def make_captions(self, context: MethodContext) -> CaptionBuilder:
        return replace(super().make_captions(context), subset=self.subset)
