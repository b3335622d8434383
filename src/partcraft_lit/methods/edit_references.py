"""Multi-image editing without training: crops of the chosen parts as reference images, and the choice in words.

What people do with an editing model instead of learning parts; it is scored as any other method.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.backbones.sampling import sample
from partcraft_lit.backbones.settings import SampleSettings
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import resize, to_unit
from partcraft_lit.core.types import BACKGROUND, Backbone, PartToken
from partcraft_lit.methods.method import CropOfCode, Method, MethodContext, RunSettings
from partcraft_lit.methods.part_tokens import PartTokens
from partcraft_lit.tokens.grammar import PartVocabulary, parse, render
from partcraft_lit.tokens.settings import CaptionSettings, TokenSettings


class EditReferences(PartTokens):
    """Draws prompts with part tokens as edits; nothing of it trains.

    Args:
        wording: words for a choice of parts.
        reference_size: longer side of reference images in pixels.
        others: see ``PartTokens``.
    """

    def __init__(self, *, wording: Wording, reference_size: int, **others: Any) -> None:
        super().__init__(**others)
        self.wording = wording
        self._reference_size = reference_size
        self._crop_of: CropOfCode | None = None
        self._source = ""

    @property
    def identity(self) -> str:
        """The words, and the images that references are cut from."""
        return f"edit_references {self._source} {self.wording} {self._reference_size}"

    def bind_images(self, crop_of: CropOfCode, source: str) -> None:
        """Takes the images that references are cut from.

        Args:
            crop_of: crops of the parts.
            source: hash of images and parts.
        """
        self._crop_of, self._source = crop_of, source

    def draw(
        self, backbone: Backbone, prompts: Sequence[str], seeds: Sequence[int], sampling: SampleSettings
    ) -> Tensor:
        """(B, 3, H, W) uint8, one image per prompt and seed.

        Raises:
            UserError: for a code that no image shows, or a backbone that takes no reference images.
        """
        drawn = []
        for prompt, seed in zip(prompts, seeds, strict=True):
            words, tokens = self.wording.of(prompt, self.vocabulary)
            latents = [self._latents(backbone, token) for token in tokens]
            with _editing(backbone).references(latents):
                drawn.append(
                    sample(
                        backbone,
                        backbone.plain_tokens([words]),
                        None,
                        negative_tokens=backbone.plain_tokens([sampling.negative_prompt]),
                        seeds=[seed],
                        steps=sampling.steps,
                        guidance_scale=sampling.guidance_scale,
                        scheduler=sampling.scheduler,
                    )
                )
        return torch.cat(drawn)

    def _latents(self, backbone: Backbone, token: PartToken) -> Tensor:
        crop = None if self._crop_of is None else self._crop_of(token.part, token.code)
        if crop is None:
            raise UserError(
                f"{render([replace(token, weight=1.0)], self.vocabulary)}: no image shows this code, so there is no "
                "reference to cut out."
            )
        factor = backbone.vae_scale_factor
        scale = self._reference_size / max(crop.shape[1:])
        height, width = (max(round(side * scale / factor), 1) * factor for side in crop.shape[1:])
        pixels = to_unit(resize(crop, (height, width))[None])
        return backbone.encode_images(pixels.to(next(backbone.denoiser.parameters()).device))[0]


@dataclass(frozen=True)
class Wording:
    """Words for a choice of parts.

    Attributes:
        prompt: with {noun} and {parts}.
        phrase: of each part, with {part} and {number}.
        noun: what is drawn.
    """

    prompt: str
    phrase: str
    noun: str

    def of(self, prompt: str, vocabulary: PartVocabulary) -> tuple[str, list[PartToken]]:
        """The words for a prompt with part tokens, and these in the order of their numbers.

        Text of the prompt beside its part tokens is not used; one without part tokens stays as it is.
        """
        tokens = [piece for piece in parse(prompt, vocabulary) if isinstance(piece, PartToken)]
        if not tokens:
            return prompt, []
        # Objects first, in the order of the prompt: the background is the least of what was asked for.
        tokens = sorted(tokens, key=lambda token: token.part == BACKGROUND)
        phrases = [
            self.phrase.format(part=vocabulary.names[token.part], number=number)
            for number, token in enumerate(tokens, start=1)
        ]
        listed = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
        return self.prompt.format(noun=self.noun, parts=listed), tokens


@dataclass(frozen=True)
class EditReferencesRecipe:
    """Settings of ``method=edit_references``.

    Attributes:
        name: of the method, for metadata.
        prompt, phrase: see ``Wording``.
        noun: what is drawn; "auto" for the noun of the dataset.
        reference_size: longer side of reference images in pixels.
        background: whether the background is a reference too.
    """

    name: str
    prompt: str
    phrase: str
    noun: str
    reference_size: int
    background: bool

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """Checks the words.

        Raises:
            UserError: for a text without its places.
        """
        for key, text, wanted, allowed in (
            ("prompt", self.prompt, {"parts"}, {"parts", "noun"}),
            ("phrase", self.phrase, {"part", "number"}, {"part", "number"}),
        ):
            try:
                places = {place for _, place, _, _ in string.Formatter().parse(text) if place is not None}
            except ValueError:
                places = set()
            if not wanted <= places <= allowed:
                shown = " and ".join(f"{{{place}}}" for place in sorted(wanted))
                raise UserError(f"method.{key}={text!r}: give a text with {shown}, and no other braces.")

    def check_words(self, tokenizers: Sequence[Any], class_noun: str) -> None:
        """Any words will do."""

    def build(self, context: MethodContext) -> Method:
        """The method, without images yet.

        Raises:
            UserError: for a backbone that takes no reference images.
        """
        _editing(context.backbone)
        captions = CaptionSettings(
            template_prob=1.0, shuffle=False, drop_prob=0.0, background=self.background, class_noun="", separator=" ",
            templates=(),
        )  # fmt: skip
        noun = context.class_noun if self.noun == "auto" else self.noun
        return EditReferences(
            wording=Wording(self.prompt, self.phrase, noun or "thing"),
            reference_size=self.reference_size,
            vocabulary=context.vocabulary,
            mapper=context.make_mapper().requires_grad_(False),
            caption_builder=context.make_captions(captions),
            tokenizers=context.backbone.tokenizers,
            prepare=_freeze,
            tokenize=context.prompt_tokenizer(TokenSettings(init=(), trained=False)),
        )


def _freeze(backbone: Backbone) -> None:
    for network in (backbone.denoiser, backbone.vae, *backbone.text_encoders):
        network.requires_grad_(False)


def _editing(backbone: Backbone) -> Any:
    """The backbone, which has to have ``references``."""
    if not hasattr(backbone, "references"):
        raise UserError(
            f"method=edit_references needs a model that edits with several images, and {backbone.name} does not: set "
            "backbone=flux2_klein."
        )
    return backbone
