"""``partcraft evaluate layers=true``: which attention layers of the model see the parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path

from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import Backbone, ImageSource, PatchFeatures, TrainingBatch
from partcraft_lit.data.crops import PixelCrops, encode_crops
from partcraft_lit.data.datamodule import Collate
from partcraft_lit.data.latents import posterior
from partcraft_lit.data.training_set import TrainingSet
from partcraft_lit.evaluation.attention_layers import (
    FILE_NAME,
    LayerScore,
    layers_table,
    rank_layers,
    word_vectors,
    write_layers,
)
from partcraft_lit.losses.objective import objective_of
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import read_parts
from partcraft_lit.runs.assembly import build_module, load_trained
from partcraft_lit.runs.settings import TrainSettings

#: Images in one forward pass.
_BATCH = 8


def rank(
    settings: TrainSettings,
    folder: Path,
    images: int,
    words: bool,
    *,
    run_folder: Path,
    source: ImageSource,
    load_backbone: Callable[[], Backbone],
    load_features: Callable[[], PatchFeatures],
) -> list[LayerScore]:
    """Ranks the layers on training images, uncropped, at timesteps drawn as in training.

    Args:
        settings: of the run.
        folder: where the table goes.
        images: number of images, at most.
        words: takes the words that parts are called by, in the model before training, instead of the trained tokens.
        run_folder: of the run.
        source: its images.
        load_backbone, load_features: its networks.

    Returns:
        The ranking, best layer first.
    """
    stages = Stages()
    backbone = load_backbone()
    vectors = None
    if words:
        dictionary = PartDictionary.load(run_folder / "parts")
        module = build_module(settings, dictionary, backbone, source.class_noun)
        module.to(next(backbone.denoiser.parameters()).device).eval()
        vectors = word_vectors(module, dictionary.names)
    else:
        module, dictionary = load_trained(settings, run_folder, backbone, source.class_noun)
    with stages.stage("read parts") as counter:
        store = Store(settings.paths.store)
        label_maps, codes, _ = read_parts(source, load_features(), dictionary, store=store, progress=counter.part)
    side = backbone.resolution // backbone.vae_scale_factor
    examples = TrainingSet(
        seed=settings.seed,
        source_len=len(codes),
        latents=PixelCrops(source, backbone.latent_channels, backbone.resolution, backbone.vae_scale_factor),
        label_maps=label_maps,
        codes=codes,
        make_caption=lambda codes, generator: module.method.plain_caption(codes),
        resolution=backbone.resolution,
        vae_scale_factor=backbone.vae_scale_factor,
        attention_size=side,
        num_train_timesteps=backbone.noise_scheduler.config.num_train_timesteps,
        flip=False,
        crop="center",
        present_only=settings.data.present_only,
        draw_timestep=objective_of(backbone).shifted(settings.data.timestep_shift).draw_timestep,
    )
    with stages.stage("rank layers"):
        scores = rank_layers(module, _batches(module, examples, min(images, len(codes))), vectors)
    write_layers(scores, folder / FILE_NAME)
    for line in layers_table(scores):
        stages.log(line)
    stages.log(f"Layers: {folder / FILE_NAME}")
    return scores


def _batches(module: PersonalizationModule, examples: TrainingSet, images: int) -> Iterator[TrainingBatch]:
    collate = Collate(module.method.tokenize)
    encode = functools.partial(posterior, module.backbone)
    for start in range(0, images, _BATCH):
        yield encode_crops(collate([examples[n] for n in range(start, min(start + _BATCH, images))]), encode)
