"""Protocols of a method.

A method is two objects. Its *recipe* holds the settings: a frozen dataclass, the ``_target_`` of
``conf/method/NAME.yaml``, checked before any model is loaded. The recipe builds the *method*, an ``nn.Module`` with the
part token embeddings. Learning rates, phases, prior images and losses are settings of any method, set by its YAML.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from partcraft_lit.backbones.settings import LoraSettings, SampleSettings
from partcraft_lit.core.settings import Inject
from partcraft_lit.core.types import Backbone, ExampleTransform, LossTerm, TokenizedPrompts
from partcraft_lit.methods.optim import OptimSettings
from partcraft_lit.parts.settings import PartsSettings
from partcraft_lit.tokens.captions import TEMPLATES, CaptionBuilder
from partcraft_lit.tokens.feature_codes import CodeFeatures
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper, mean_norm
from partcraft_lit.tokens.settings import CaptionSettings, MapperSettings, TokenSettings
from partcraft_lit.tokens.tokenize import PromptTokenizer
from partcraft_lit.tokens.words import word_vector

#: ``class_noun`` that puts the part's name after each token.
EACH = "each"

#: Words whose hidden states have the norm that ``mapper.norm_match`` gives to vectors after the text encoder.
_COMMON_WORDS = ("bird", "dog", "house", "person", "car", "tree", "chair", "flower")


class Method(Protocol):
    """Personalisation of a backbone with part tokens. Implementations are ``nn.Module``s.

    ``make_caption``, ``tokenize`` and ``transform`` are pickled to loader workers, so they hold no weights.
    """

    vocabulary: PartVocabulary
    #: Whether attention to the word after each part token is captured: ``StepOutput.noun_attention_maps``.
    captures_noun_attention: bool

    @property
    def make_caption(self) -> Callable[[Tensor, torch.Generator], str]:
        """(M + 1,) codes and a CPU generator -> a training caption in the prompt grammar."""
        ...

    @property
    def tokenize(self) -> Callable[[Sequence[str]], TokenizedPrompts]:
        """Prompts -> ids and positions of part tokens, on the CPU."""
        ...

    @property
    def transform(self) -> ExampleTransform | None:
        """Transform of training examples, or None."""
        ...

    def plain_caption(self, codes: Tensor) -> str:
        """(M + 1,) codes -> the deterministic caption of samples and scores."""
        ...

    def part_vectors(self, tokens: TokenizedPrompts) -> Tensor:
        """(B, T, sum of token widths) embeddings of the part tokens, zeros where unused."""
        ...

    def bake(self) -> Tensor:
        """(M + 1, K, sum of token widths) embedding of every code of every part."""
        ...

    def trainable_groups(self) -> dict[str, list[nn.Parameter]]:
        """Trainable parameters beside the backbone, by the name of their learning rate."""
        ...

    def prepare(self, backbone: Backbone) -> None:
        """Freezes the backbone and sets ``requires_grad`` of what trains in it; called once."""
        ...

    def loss_terms(self) -> Sequence[LossTerm]:
        """Attention loss terms of this method, beside ``loss.attention``."""
        ...


#: (part, code) -> (3, height, width) uint8 crop of the part, or None for a code that no image shows.
CropOfCode = Callable[[int, int], Tensor | None]


@runtime_checkable
class DrawsItself(Protocol):
    """A method that draws from the training images, and not by part vectors."""

    @property
    def identity(self) -> str:
        """What decides its images beside backbone, prompt, seed and sampling; for their recipes."""
        ...

    def bind_images(self, crop_of: CropOfCode, source: str) -> None:
        """Called once, after discovery.

        Args:
            crop_of: crops of the parts.
            source: hash of images and parts.
        """
        ...

    def draw(
        self, backbone: Backbone, prompts: Sequence[str], seeds: Sequence[int], sampling: SampleSettings
    ) -> Tensor:
        """(B, 3, H, W) uint8, one image per prompt and seed."""
        ...


@dataclass(frozen=True)
class MethodContext:
    """What recipes build methods from.

    Attributes:
        vocabulary: parts and codes of the dictionary.
        backbone: frozen, without an adapter.
        class_noun: of the dataset, or "".
        mapper, lora: settings of these groups.
        seed: of initial weights.
        features: of the dictionary's codes, for ``mapper.init=features``. None where only the names and numbers of
            codes are known, or where weights are loaded next.
    """

    vocabulary: PartVocabulary
    backbone: Backbone
    class_noun: str
    mapper: MapperSettings
    lora: LoraSettings
    seed: int
    features: CodeFeatures | None = None

    def make_mapper(self, inject: Inject = "before") -> TokenMapper:
        """Token mapper for the dictionary and the widths of what its vectors replace."""
        settings, backbone = self.mapper, self.backbone
        return TokenMapper(
            num_parts=self.vocabulary.num_parts,
            num_codes=self.vocabulary.max_codes,
            widths=backbone.token_widths if inject == "before" else backbone.context_widths,
            layers=settings.layers,
            position=settings.position,
            norm_match=self._norms(inject) if settings.norm_match else None,
            hidden=settings.hidden,
            init_std=settings.init_std,
            features=self.features if settings.init == "features" else None,
            seed=self.seed,
        )

    def _norms(self, inject: Inject) -> tuple[float, ...]:
        """Norms of what part vectors replace: of all token embeddings, or of the hidden states of common words."""
        if inject == "before":
            return tuple(map(mean_norm, self.embeddings()))
        states = self.backbone.word_states(_COMMON_WORDS)
        return tuple(map(mean_norm, states.split(self.backbone.context_widths, dim=-1)))

    def word_vectors(self, words: Sequence[str], inject: Inject = "before") -> Tensor:
        """(words, width) what part vectors start from: token embeddings of words, or their hidden states.

        Raises:
            UserError: if a word is not a single token.
        """
        if inject == "after":
            return self.backbone.word_states(words).cpu()
        if (text_format := self.backbone.text_format) is not None:
            (table,) = self.embeddings()
            return torch.stack([table.detach()[text_format.word_id(word)].float() for word in words])
        return torch.stack([word_vector(word, self.backbone.tokenizers, self.embeddings()) for word in words])

    def prompt_tokenizer(self, tokens: TokenSettings) -> PromptTokenizer:
        """Tokenization of the backbone, with what stands at part tokens."""
        fill = tokens.fill if tokens.inject == "after" else None
        return PromptTokenizer(
            self.vocabulary, tuple(self.backbone.tokenizers), text_format=self.backbone.text_format, fill=fill
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
    """Settings of a run that recipes check."""

    @property
    def parts(self) -> PartsSettings: ...
    @property
    def mapper(self) -> MapperSettings: ...
    @property
    def optim(self) -> OptimSettings: ...


class RecipeSettings(RunSettings, Protocol):
    """Settings of a run with its recipe."""

    @property
    def method(self) -> Recipe: ...


class Recipe(Protocol):
    """Settings of a method."""

    @property
    def name(self) -> str: ...

    def check(self, settings: RunSettings, class_noun: str) -> None:
        """Checks for incompatible settings, before anything expensive.

        Raises:
            UserError: for settings that cannot be trained.
        """
        ...

    def check_words(self, tokenizers: Sequence[Any], class_noun: str) -> None:
        """Checks words against the model's tokenizers, before its networks are loaded.

        Raises:
            UserError: for instance for a word of several tokens.
        """
        ...

    def build(self, context: MethodContext) -> Method: ...
