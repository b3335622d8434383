"""Puts a trainable system together from settings, a dictionary and a backbone."""

from __future__ import annotations

from pathlib import Path

import torch

from partcraft_lit.callbacks.checkpoint import newest_good
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Backbone
from partcraft_lit.methods.method import Method, MethodContext, Recipe
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.corrections import untrained_codes
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.runs.memory import apply_memory_options
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.runs.vocabulary import vocabulary_of
from partcraft_lit.tokens.feature_codes import CodeFeatures
from partcraft_lit.tokens.grammar import PartVocabulary

#: What a code is that came with a correction of the parts, and what to do.
UNTRAINED = (
    "it came with a correction of the parts, after the last training step: train the run further (ckpt_path=RUN)"
)


def build_module(
    settings: TrainSettings, dictionary: PartDictionary, backbone: Backbone, class_noun: str
) -> PersonalizationModule:
    """Builds the method around the dictionary, which then prepares the backbone for what it trains there.

    Args:
        settings: of the run.
        dictionary: parts and codes.
        backbone: changed here: an adapter is added, weights are told to train.
        class_noun: the data set's own noun, used where the settings ask for "auto".
    """
    module = assemble(settings, vocabulary_of(dictionary), backbone, class_noun, code_features(dictionary))
    if (base_codes := dictionary.metadata.get("base_codes")) is not None:
        module.use_corrected(base_codes)
    return module


def assemble(
    settings: TrainSettings,
    vocabulary: PartVocabulary,
    backbone: Backbone,
    class_noun: str,
    features: CodeFeatures | None = None,
) -> PersonalizationModule:
    """``build_module`` where only the names and numbers of codes may be known."""
    method = build_method(settings, vocabulary, backbone, class_noun, features)
    method.prepare(backbone)
    apply_memory_options(settings.hardware, backbone, settings.paths.store.expanduser())
    return PersonalizationModule(
        backbone,
        method,
        settings.optim,
        settings.loss.snr_gamma,
        settings.hardware.capped(settings.sample),
        snr_form=settings.loss.snr_form,
        region=settings.loss.region,
        region_mean=settings.loss.region_mean,
        prior_weight=settings.prior.weight,
        small_parts=settings.loss.small_parts,
        outlines=settings.loss.outlines,
    )


def build_method(
    settings: TrainSettings,
    vocabulary: PartVocabulary,
    backbone: Backbone,
    class_noun: str,
    features: CodeFeatures | None = None,
) -> Method:
    """What the recipe of the settings makes of the dictionary; the backbone is only looked at."""
    recipe: Recipe = settings.method
    return recipe.build(
        MethodContext(vocabulary, backbone, class_noun, settings.mapper, settings.lora, settings.seed, features)
    )


def code_features(dictionary: PartDictionary) -> CodeFeatures:
    """What the codes of a dictionary look like; those that corrections added do not move the others."""
    known = dictionary.metadata.get("base_codes", dictionary.codes_per_part)
    # A part that corrections split off has codes of its own and none before.
    return CodeFeatures(dictionary.code_centroids, (*known, *[0] * (len(dictionary.code_centroids) - len(known))))


def load_trained(
    settings: TrainSettings, run_folder: Path, backbone: Backbone, class_noun: str
) -> tuple[PersonalizationModule, PartDictionary]:
    """The module of a run with the weights of its newest good checkpoint, and its dictionary.

    Raises:
        UserError: if the run has no checkpoint that can be read, or no dictionary.
    """
    checkpoint = trained_checkpoint(run_folder)
    dictionary = PartDictionary.load(run_folder / "parts")
    module = build_module(settings, dictionary, backbone, class_noun)
    load_weights(module, checkpoint)
    return module, dictionary


def trained_codes(run_folder: Path) -> tuple[int, ...]:
    """How many codes of each part the newest checkpoint of a run has trained; of a run without one, none."""
    checkpoint = newest_good(run_folder / "checkpoints")
    dictionary = PartDictionary.load(run_folder / "parts")
    if checkpoint is None:
        return (0,) * len(dictionary.names)
    recorded = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True).get("num_codes")
    return tuple(recorded or dictionary.metadata.get("base_codes") or dictionary.codes_per_part)


def untrained_of_run(run_folder: Path, dictionary: PartDictionary) -> dict[int, list[int]]:
    """Part -> codes that came with corrections and that no checkpoint of the run has trained."""
    if "base_codes" not in dictionary.metadata:
        return {}
    return untrained_codes(trained_codes(run_folder), dictionary.codes_per_part)


def trained_checkpoint(run_folder: Path) -> Path:
    """The newest good checkpoint of a run.

    Raises:
        UserError: if there is none.
    """
    checkpoint = newest_good(run_folder / "checkpoints")
    if checkpoint is None:
        raise UserError(f"The run {run_folder} has no checkpoint that can be read; train it first (or further).")
    return checkpoint


def load_weights(module: PersonalizationModule, checkpoint: Path) -> None:
    """Gives an untrained module the weights of a checkpoint, on the backbone's device and in evaluation mode."""
    content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"])
    module.to(next(module.backbone.denoiser.parameters()).device).eval()
