"""PartCraft: part tokens through a shared mapper, LoRA and an attention loss."""

from __future__ import annotations

from dataclasses import dataclass

from partcraft_lit.methods.part_tokens import PartTokensRecipe


@dataclass(frozen=True)
class PartCraft(PartTokensRecipe):
    """The method of Ng et al. (arXiv 2407.04604)."""
