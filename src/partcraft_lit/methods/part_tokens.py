"""One token per part and code: PartCraft, and the base of all other methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from partcraft_lit.backbones.settings import LoraSettings
from partcraft_lit.backbones.trainable_weights import UnetTraining, set_trainable
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Backbone, ExampleTransform, LossTerm, TokenizedPrompts
from partcraft_lit.methods.method import EACH, Method, MethodContext, RunSettings
from partcraft_lit.methods.optim import PhaseSettings
from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper
from partcraft_lit.tokens.settings import CaptionSettings, TokenSettings
from partcraft_lit.tokens.tokenize import PromptTokenizer
from partcraft_lit.tokens.words import word_ids

#: Sets ``requires_grad`` in a backbone.
Preparation = Callable[[Backbone], None]


class PartTokens(nn.Module):
    """Part tokens through a mapper; other methods override members.

    Args:
        vocabulary: parts and codes of the dictionary.
        mapper: for the same parts and codes.
        caption_builder: with the same vocabulary.
        tokenizers: one per text encoder.
        prepare: sets ``requires_grad`` in the backbone; None leaves it as it is.
        tokenize: of prompts; None for CLIP's with these tokenizers.

    Raises:
        ValueError: for arguments of different dictionaries.
    """

    captures_noun_attention = False

    def __init__(
        self,
        vocabulary: PartVocabulary,
        mapper: TokenMapper,
        caption_builder: CaptionBuilder,
        tokenizers: Sequence[Any],
        prepare: Preparation | None = None,
        tokenize: PromptTokenizer | None = None,
    ) -> None:
        super().__init__()
        if (mapper.num_parts, mapper.num_codes) != (vocabulary.num_parts, vocabulary.max_codes):
            raise ValueError(
                f"The mapper is for {mapper.num_parts} parts of {mapper.num_codes} codes, the vocabulary has "
                f"{vocabulary.num_parts} parts of up to {vocabulary.max_codes}; make both from one dictionary."
            )
        if caption_builder.vocabulary != vocabulary:
            raise ValueError("The caption builder has another vocabulary; make both from one dictionary.")
        self.vocabulary = vocabulary
        self.mapper = mapper
        self.make_caption: Callable[[Tensor, torch.Generator], str] = caption_builder
        self.tokenize = PromptTokenizer(vocabulary, tuple(tokenizers)) if tokenize is None else tokenize
        self.transform: ExampleTransform | None = None
        self._captions = caption_builder
        self._prepare = prepare

    def plain_caption(self, codes: Tensor) -> str:
        """(M + 1,) codes -> the deterministic caption of samples and scores."""
        return self._captions.plain(codes)

    def part_vectors(self, tokens: TokenizedPrompts) -> Tensor:
        """(B, T, sum of token widths) embeddings of the part tokens, zeros where unused."""
        vectors: Tensor = self.mapper(tokens.part_ids, tokens.code_ids)
        return vectors

    def bake(self) -> Tensor:
        """(M + 1, K, sum of token widths) embedding of every code of every part."""
        return self.mapper.bake()

    def trainable_groups(self) -> dict[str, list[nn.Parameter]]:
        """The mapper's trainable parameters."""
        return {"mapper": [parameter for parameter in self.mapper.parameters() if parameter.requires_grad]}

    def prepare(self, backbone: Backbone) -> None:
        if self._prepare is not None:
            self._prepare(backbone)

    def loss_terms(self) -> Sequence[LossTerm]:
        return ()


@dataclass(frozen=True)
class PartTokensRecipe:
    """Settings of a method with one token per part and code.

    Attributes:
        name: of the method, for metadata.
        unet: what trains in the UNet: "lora", "full", "cross_kv" or "none".
        text_encoder: whether the text encoder trains, except for its embedding table.
        tokens: embeddings of part tokens.
        captions: training captions.
    """

    name: str
    unet: UnetTraining
    text_encoder: bool
    tokens: TokenSettings
    captions: CaptionSettings

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """Checks for incompatible settings.

        Raises:
            UserError: for initial words with a mapper, a word that is not a single one, a missing noun, or if nothing
                trains.
        """
        words = self.words(class_noun)
        if settings.mapper.init == "features" and not settings.mapper.layers:
            raise UserError(
                "mapper.init=features initialises codes from image features, which only a mapper can turn into token "
                "embeddings: set mapper.layers to 1 or more, or mapper.init=random."
            )
        if words and (settings.mapper.layers or settings.mapper.position):
            raise UserError(
                "method.tokens.init gives the tokens' first vectors, and a mapper would change them: set "
                "mapper.layers=0 and mapper.position=false, or method.tokens.init=[]."
            )
        if len(words) > 1 and len(words) != settings.parts.M:
            raise UserError(
                f"method.tokens.init={list(self.tokens.init)}: wanted no word, one for all foreground parts, or one "
                f"for each of the {settings.parts.M} (parts.M)."
            )
        if not self.tokens.trained and (not words or "auto" in self.tokens.init):
            raise UserError(
                "method.tokens.trained=false keeps the tokens at their first vectors: name a rare word for them, for "
                "instance method.tokens.init=[sks]."
            )
        if not self.tokens.trained and self.unet == "none" and not self.text_encoder:
            raise UserError(
                "Nothing would train: set method.tokens.trained=true, method.text_encoder=true, or method.unet to "
                "lora, full or cross_kv."
            )
        if self.tokens.inject == "after" and self.text_encoder:
            raise UserError(
                "method.tokens.inject=after runs the text encoder without gradients, and method.text_encoder=true "
                "trains it: set one of the two back."
            )
        if self.captions.class_noun == "auto":
            require_noun(class_noun, "method.captions.class_noun")
        if self.captions.class_noun == EACH and not settings.parts.names and settings.parts.source == "discover":
            raise UserError(
                "method.captions.class_noun=each writes the name of its part behind each token: name the parts, for "
                "instance parts.names=[cat,dog]."
            )
        check_phases(settings.optim.phases, self.groups())

    def check_words(self, tokenizers: Sequence[Any], class_noun: str) -> None:
        """Checks that words which stand for part tokens are single tokens.

        Raises:
            UserError: if one is not.
        """
        for word in (*self.words(class_noun), *([self.tokens.fill] if self.tokens.inject == "after" else [])):
            word_ids(word, tokenizers)

    def groups(self) -> list[str]:
        """Names of the trainable groups, as in learning rates and phases."""
        unet = {"lora": ["lora"], "none": []}.get(self.unet, ["unet"])
        return [*(["mapper"] if self.tokens.trained else []), *unet, *(["text_encoder"] if self.text_encoder else [])]

    def words(self, class_noun: str) -> tuple[str, ...]:
        """Initial words of the tokens, with the class noun for "auto".

        Raises:
            UserError: if one is not a single word.
        """
        words = tuple(
            require_noun(class_noun, "method.tokens.init") if w == "auto" else w.strip() for w in self.tokens.init
        )
        for word in words:
            if len(word.split()) != 1 or set("<>") & set(word):
                raise UserError(
                    f"method.tokens.init: {word!r} is not one word, and a token has one vector. Take a single word for "
                    "it, such as its head noun."
                )
        return words

    def build(self, context: MethodContext) -> Method:
        return PartTokens(
            vocabulary=context.vocabulary,
            mapper=self.make_mapper(context),
            caption_builder=self.make_captions(context),
            tokenizers=context.backbone.tokenizers,
            prepare=self.preparation(context.lora, context.seed),
            tokenize=context.prompt_tokenizer(self.tokens),
        )

    def make_captions(self, context: MethodContext) -> CaptionBuilder:
        return context.make_captions(self.captions)

    def make_mapper(self, context: MethodContext) -> TokenMapper:
        """The mapper, initialised from words, frozen if tokens are not trained.

        Raises:
            UserError: if a word is not a single token.
        """
        mapper = context.make_mapper(self.tokens.inject)
        # Without a noun the module is for a trained run, whose embeddings come from its checkpoint: see ``check``.
        known = context.class_noun or "auto" not in self.tokens.init
        words = self.words(context.class_noun) if known else ()
        if words:
            vectors = context.word_vectors(words, self.tokens.inject)
            split_off = mapper.num_parts - len(vectors)
            if len(vectors) > 1 and split_off > 0:  # pieces that corrections appended have no word of their own
                vectors = torch.cat([vectors, vectors.mean(dim=0, keepdim=True).expand(split_off, -1)])
            with torch.no_grad():
                mapper.codes[1:] = vectors[:, None].to(mapper.codes)  # one for all, or one per part
        return mapper.requires_grad_(self.tokens.trained)

    def preparation(self, lora: LoraSettings, seed: int) -> Preparation:
        def prepare(backbone: Backbone) -> None:
            backbone.inject = self.tokens.inject
            set_trainable(
                backbone, self.unet, self.text_encoder, rank=lora.rank, alpha=lora.alpha, scope=lora.scope, seed=seed
            )

        return prepare


def check_phases(phases: Sequence[PhaseSettings], groups: Sequence[str]) -> None:
    """Checks ``optim.phases`` against the method's trainable groups.

    Raises:
        UserError: for a phase in which nothing trains, one after an endless one, or a group that never trains.
    """
    for number, phase in enumerate(phases):
        if not set(phase.groups) & set(groups):
            raise UserError(
                f"optim.phases[{number}] trains {', '.join(phase.groups) or 'nothing'}, and this method has "
                f"{', '.join(groups)}: nothing would train in it."
            )
        if phase.steps is None and number < len(phases) - 1:
            raise UserError(f"optim.phases[{number}].steps=null has no end, and other phases follow: give it a number.")
    named = {name for phase in phases for name in phase.groups}
    for group in groups if phases else ():
        if group not in named:
            raise UserError(
                f"{group!r} trains in no phase: name it in a phase of optim.phases, which have {sorted(named)}, or do "
                "not train it (method.unet, method.text_encoder, method.tokens.trained)."
            )


def require_noun(class_noun: str, key: str) -> str:
    """The dataset's noun.

    Raises:
        UserError: without one.
    """
    if not class_noun:
        raise UserError(
            f"{key} asks for the noun of the dataset, and this one has none: set dataset.class_noun, for instance "
            f"dataset.class_noun=bird, or write a word in place of 'auto'."
        )
    return class_noun
