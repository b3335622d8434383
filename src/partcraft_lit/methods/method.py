"""What a method is to the rest: captions, ids, vectors for the part tokens, and what trains.

A method is two objects. Its *recipe* is what the configuration says, a frozen dataclass that ``_target_`` in
``conf/method/NAME.yaml`` names; it is made and checked before any model is loaded. The recipe builds the *method*,
an ``nn.Module`` around the dictionary and the backbone. Rates, phases, prior images and losses are settings that any
method can have; its YAML sets them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from partcraft_lit.backbones.settings import LoraSettings
from partcraft_lit.core.types import Backbone, ExampleTransform, LossTerm, TokenizedPrompts
from partcraft_lit.methods.optim import OptimSettings
from partcraft_lit.parts.settings import PartsSettings
from partcraft_lit.tokens.captions import TEMPLATES, CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper, mean_norm
from partcraft_lit.tokens.settings import CaptionSettings, MapperSettings

#: In place of one class noun: each token is followed by the name of its own part.
EACH = "each"


class Method(Protocol):
    """A way to personalise a backbone by part tokens. Implementations are ``nn.Module``s.

    ``make_caption``, ``tokenize`` and ``transform`` are separate objects, so that loader workers receive no weights.
    """

    vocabulary: PartVocabulary
    #: Whether the word behind each part token is watched too: ``StepOutput.noun_attention_maps``.
    captures_noun_attention: bool

    @property
    def make_caption(self) -> Callable[[Tensor, torch.Generator], str]:
        """(M + 1,) codes and a CPU generator -> a training caption in the prompt grammar."""
        ...

    @property
    def tokenize(self) -> Callable[[Sequence[str]], TokenizedPrompts]:
        """Prompts -> ids and places of part tokens, on the CPU."""
        ...

    @property
    def transform(self) -> ExampleTransform | None:
        """What is done to each training example, or None."""
        ...

    def plain_caption(self, codes: Tensor) -> str:
        """(M + 1,) codes -> the caption for samples and scores, without chance."""
        ...

    def part_vectors(self, tokens: TokenizedPrompts) -> Tensor:
        """(B, T, sum of token widths) embeddings for the part tokens, zeros where there is none."""
        ...

    def bake(self) -> Tensor:
        """(M + 1, K, sum of token widths) embedding of every code of every part."""
        ...

    def trainable_groups(self) -> dict[str, list[nn.Parameter]]:
        """What trains beside the backbone, by the name under which a learning rate can be set."""
        ...

    def prepare(self, backbone: Backbone) -> None:
        """Freezes the backbone and lets train in it what the method wants trained, once."""
        ...

    def loss_terms(self) -> Sequence[LossTerm]:
        """Terms on attention that only this method has, beside the one that ``loss.attention`` names."""
        ...


@dataclass(frozen=True)
class MethodContext:
    """What a recipe builds a method from.

    Attributes:
        vocabulary: parts and codes of the dictionary.
        backbone: frozen, without an adapter.
        class_noun: the noun of the dataset, or "".
        mapper, lora: settings of those groups.
        seed: of first weights.
    """

    vocabulary: PartVocabulary
    backbone: Backbone
    class_noun: str
    mapper: MapperSettings
    lora: LoraSettings
    seed: int

    def make_mapper(self) -> TokenMapper:
        """A token mapper for the dictionary, as wide as the backbone's embeddings."""
        settings = self.mapper
        return TokenMapper(
            num_parts=self.vocabulary.num_parts,
            num_codes=self.vocabulary.max_codes,
            widths=self.backbone.token_widths,
            layers=settings.layers,
            position=settings.position,
            norm_match=tuple(map(mean_norm, self.embeddings())) if settings.norm_match else None,
            hidden=settings.hidden,
            init_std=settings.init_std,
            seed=self.seed,
        )

    def make_captions(self, captions: CaptionSettings) -> CaptionBuilder:
        nouns = {"auto": self.class_noun, EACH: ""}
        return CaptionBuilder(
            vocabulary=self.vocabulary,
            template_prob=captions.template_prob,
            shuffle=captions.shuffle,
            class_noun=nouns.get(captions.class_noun, captions.class_noun),
            nouns=captions.class_noun == EACH,
            drop_prob=captions.drop_prob,
            background=captions.background,
            separator=captions.separator,
            templates=captions.templates or TEMPLATES,
        )

    def embeddings(self) -> list[Tensor]:
        """The embedding table of each text encoder, (words, width)."""
        return [encoder.get_input_embeddings().weight for encoder in self.backbone.text_encoders]  # type: ignore[operator]


class RunSettings(Protocol):
    """The settings of a run that a recipe may object to."""

    @property
    def parts(self) -> PartsSettings: ...
    @property
    def mapper(self) -> MapperSettings: ...
    @property
    def optim(self) -> OptimSettings: ...


class RecipeSettings(RunSettings, Protocol):
    """Settings of a run with the recipe itself."""

    @property
    def method(self) -> Recipe: ...


class Recipe(Protocol):
    """What the configuration says of a method."""

    @property
    def name(self) -> str: ...

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """Looks for settings that do not go together, before anything expensive.

        Raises:
            UserError: for what cannot be trained.
        """
        ...

    def check_words(self, tokenizers: Sequence[Any], class_noun: str) -> None:
        """Looks for words that this model cannot take, before its networks are loaded.

        Raises:
            UserError: for instance for a word that is several tokens to it.
        """
        ...

    def build(self, context: MethodContext) -> Method: ...
