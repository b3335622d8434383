"""DisenDiff: Custom Diffusion with attention losses that bind tokens to their nouns and separate the nouns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import LossTerm, StepOutput
from partcraft_lit.losses.attention_iou import Kernel, bind_loss, separate_loss
from partcraft_lit.methods.custom_diffusion import CustomDiffusion
from partcraft_lit.methods.method import Method, MethodContext, RunSettings
from partcraft_lit.methods.part_tokens import PartTokens


@dataclass
class DisentangledAttention:
    """Loss term: ``bind_loss`` of tokens and nouns + ``separate_loss`` of nouns.

    Attributes:
        weight: of the term.
        kernel, smooth: see ``losses.attention_iou``.
        bind: reduction of ``bind_loss`` over the tokens of a caption.
    """

    weight: float
    kernel: Kernel
    smooth: float
    bind: Literal["sum", "mean"]
    name: str = "disentangle"
    reads_attention: bool = True

    def __call__(self, step: StepOutput) -> Tensor:
        """(B,) float32; 0 for a caption without part tokens."""
        if step.attention_maps is None or step.noun_attention_maps is None:
            raise RuntimeError(f"The loss term {self.name!r} needs the attention of part tokens and of their nouns.")
        used = step.batch.tokens.part_ids >= 0
        with torch.autocast(used.device.type, enabled=False):
            bound = bind_loss(step.attention_maps, step.noun_attention_maps, self.kernel, self.smooth)
            bound = bound.masked_fill(~used, 0.0).sum(dim=1)
            if self.bind == "mean":
                bound = bound / used.sum(dim=1).clamp_min(1)
            return bound + separate_loss(step.noun_attention_maps, used, self.kernel, self.smooth)


class NounTokens(PartTokens):
    """Part tokens whose nouns' attention is captured too."""

    captures_noun_attention = True

    def __init__(self, term: DisentangledAttention, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._term = term

    def loss_terms(self) -> Sequence[LossTerm]:
        return (self._term,)


@dataclass(frozen=True)
class DisenDiff(CustomDiffusion):
    """The method of Zhang et al. (arXiv 2403.18551): several concepts from one image, without masks.

    Attributes:
        names: nouns of the parts, as in ``parts.names``.
        most: largest number of concepts; None for a dictionary of any size.
        weight, kernel, smooth, bind: see ``DisentangledAttention``.

    Source: the paper and its released code. Differs: see ``conf/method/disendiff.yaml``.
    """

    names: tuple[str, ...]
    most: int | None
    weight: float
    kernel: Kernel
    smooth: float
    bind: Literal["sum", "mean"]

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """As for Custom Diffusion.

        Raises:
            UserError: also for too few or too many concepts, and for nouns that are missing or not single words.
        """
        number = settings.parts.M
        if number < 2 or (self.most is not None and number > self.most):
            wanted = "2 or more" if self.most is None else f"2 to {self.most}"
            raise UserError(
                f"method={self.name} tells {wanted} concepts apart, got parts.M={number}. For one concept take "
                "method=custom_diffusion; method.most=null allows any number."
            )
        if not self.nouns:
            raise UserError("DisenDiff compares a token with the noun behind it: set method.nouns=true.")
        if not self.names and settings.parts.source == "discover":
            raise UserError(
                "DisenDiff needs a noun for each part: name them from the top of the image down, for instance "
                "parts.names=[head,wing,body,tail,legs], or the concepts, parts.names=[cat,dog]."
            )
        for noun in self.names:
            if not noun.isalpha():
                raise UserError(f"parts.names: the noun {noun!r} is not one plain word, and DisenDiff reads one token.")
        super().check(settings, class_noun)

    def check_words(self, tokenizers: Sequence[Any], class_noun: str) -> None:
        """Also checks the nouns, which must be single tokens."""
        super().check_words(tokenizers, class_noun)
        self._check_nouns(self.names, tokenizers)

    def build(self, context: MethodContext) -> Method:
        first = 0 if self.captions.background else 1
        self._check_nouns(context.vocabulary.names[first:], context.backbone.tokenizers)
        return NounTokens(
            DisentangledAttention(self.weight, self.kernel, self.smooth, self.bind),
            vocabulary=context.vocabulary,
            mapper=self.make_mapper(context),
            caption_builder=self.make_captions(context),
            tokenizers=context.backbone.tokenizers,
            prepare=self.preparation(context.lora, context.seed),
            tokenize=context.prompt_tokenizer(self.tokens),
        )

    def _check_nouns(self, nouns: Sequence[str], tokenizers: Sequence[Any]) -> None:
        for noun in nouns:
            ids = tokenizers[0](noun, add_special_tokens=False).input_ids
            if len(ids) != 1:
                raise UserError(
                    f"The noun {noun!r} is {len(ids)} tokens to this model, and DisenDiff reads the attention of "
                    "one: take a common, single word for this part in parts.names."
                )
