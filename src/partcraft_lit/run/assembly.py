"""Puts a trainable system together from settings, a dictionary and a backbone."""

from __future__ import annotations

from partcraft_lit.backbones.lora import add_lora
from partcraft_lit.methods.partcraft import PartCraft
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.settings import TrainSettings
from partcraft_lit.tokens.captions import CaptionBuilder
from partcraft_lit.tokens.grammar import PartVocabulary
from partcraft_lit.tokens.mapper import TokenMapper, mean_norms
from partcraft_lit.types import Backbone


def vocabulary_of(dictionary: PartDictionary) -> PartVocabulary:
    """Names and numbers of codes that a prompt may hold."""
    return PartVocabulary(dictionary.names, dictionary.codes_per_part)


def build_module(
    settings: TrainSettings, dictionary: PartDictionary, backbone: Backbone, class_noun: str
) -> PersonalizationModule:
    """Adds the adapter to the backbone and builds the method around the dictionary.

    Args:
        settings: of the run.
        dictionary: parts and codes.
        backbone: gets its LoRA here.
        class_noun: the data set's own noun, used where the captions ask for "auto".
    """
    add_lora(
        backbone.unet, rank=settings.lora.rank, alpha=settings.lora.alpha, scope=settings.lora.scope, seed=settings.seed
    )
    method = build_method(settings, vocabulary_of(dictionary), backbone, class_noun)
    return PersonalizationModule(backbone, method, settings.optim, settings.loss.snr_gamma, settings.sample)


def build_method(settings: TrainSettings, vocabulary: PartVocabulary, backbone: Backbone, class_noun: str) -> PartCraft:
    """The token mapper and the captions of the method."""
    tables = [encoder.get_input_embeddings().weight for encoder in backbone.text_encoders]  # type: ignore[operator]
    mapper = TokenMapper(
        num_parts=vocabulary.num_parts,
        num_codes=vocabulary.max_codes,
        widths=backbone.token_widths,
        layers=settings.mapper.layers,
        position=settings.mapper.position,
        norm_match=mean_norms(tables) if settings.mapper.norm_match else None,
        hidden=settings.mapper.hidden,
        init_std=settings.mapper.init_std,
        seed=settings.seed,
    )
    captions = settings.method.captions
    builder = CaptionBuilder(
        vocabulary=vocabulary,
        template_prob=captions.template_prob,
        shuffle=captions.shuffle,
        class_noun=class_noun if captions.class_noun == "auto" else captions.class_noun,
        drop_prob=captions.drop_prob,
        background=captions.background,
    )
    return PartCraft(vocabulary, mapper, builder, backbone.tokenizers)
