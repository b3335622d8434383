"""Training examples of a run, those of its prior images, and the probe batch that attention is shown on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.types import ABSENT, TrainingBatch
from partcraft_lit.data.captions import caption_texts
from partcraft_lit.data.crops import encode_crops
from partcraft_lit.data.datamodule import Collate
from partcraft_lit.data.latents import posterior
from partcraft_lit.data.part_mixing import PartMixing
from partcraft_lit.data.prior import FixedCaption, prior_prompt
from partcraft_lit.data.scaled import ComposedTransform
from partcraft_lit.data.training_set import TrainingSet
from partcraft_lit.losses.objective import objective_of

#: Images whose attention is shown over the course of training.
_PROBE_IMAGES = 4


def training_set(run: RunContext, total_samples: int) -> TrainingSet:
    """Sample numbers -> examples with the method's captions, of scaled views where there are any.

    Args:
        run: its discovery, latents and module are there.
        total_samples: of the whole training, in all processes.
    """
    discovery, scaled, method = run.discovery, run.scaled, run.module.method
    texts = caption_texts(run.source, [method.plain_caption(codes) for codes in discovery.codes], method.tokenize)
    if texts is not None and scaled:
        texts = [text for text in texts for _ in range(len(scaled.codes) // len(texts))]
    return TrainingSet(
        seed=run.settings.seed,
        source_len=len(scaled.codes if scaled else discovery.codes),
        latents=scaled.latents if scaled else run.latents,
        label_maps=scaled.label_maps if scaled else discovery.label_maps,
        codes=scaled.codes if scaled else discovery.codes,
        make_caption=method.make_caption,
        texts=texts,
        transform=ComposedTransform(scaled.transform, method.transform) if scaled else method.transform,
        present_only=run.settings.data.present_only,
        **_geometry(run, _label_side(run)),
        flip=run.settings.data.flip,
        crop=run.settings.data.crop,
        mixing=PartMixing(run.settings.data.mix, total_samples) if run.settings.data.mix.is_used else None,
        empty_captions=run.settings.data.empty_captions,
    )


def prior_examples(run: RunContext) -> TrainingSet | None:
    """Prior images as examples without parts; their noise and timesteps are not those of the images they go with."""
    if run.prior is None:
        return None
    no_part = torch.full((1, 1), 255, dtype=torch.uint8)
    return TrainingSet(
        seed=derive_seed(run.settings.seed, "prior"),
        source_len=len(run.prior),
        latents=run.prior,
        label_maps=[no_part] * len(run.prior),
        codes=torch.full((len(run.prior), run.discovery.codes.shape[1]), ABSENT),
        make_caption=FixedCaption(prior_prompt(run.settings.prior, run.source.class_noun)),
        **_geometry(run, _label_side(run)),
        flip=run.settings.data.flip,
        crop=run.settings.data.crop,
    )


def probe_batch(run: RunContext) -> TrainingBatch:
    """The first images with all their parts in the caption, uncropped, at one middling timestep."""
    examples = TrainingSet(
        seed=run.settings.seed,
        source_len=len(run.discovery.codes),
        latents=run.latents,
        label_maps=run.discovery.label_maps,
        codes=run.discovery.codes,
        make_caption=_plain_caption(run),
        transform=None,
        present_only=run.settings.data.present_only,
        **_geometry(run, run.backbone.attention_size),
        flip=False,
        crop="center",
    )
    batch = Collate(run.module.method.tokenize)([examples[number] for number in range(_PROBE_IMAGES)])
    batch = encode_crops(batch, functools.partial(posterior, run.backbone))
    return replace(batch, timesteps=torch.full_like(batch.timesteps, objective_of(run.backbone).probe_timestep))


def _plain_caption(run: RunContext) -> Callable[[Tensor, torch.Generator], str]:
    return lambda codes, generator: run.module.method.plain_caption(codes)


def _label_side(run: RunContext) -> int:
    """Side of an example's label map: as fine as the latents where the diffusion loss asks where parts are."""
    data = run.settings.data
    fine = run.settings.loss.reads_label_map or data.scale_variants > 0 or data.mix.is_used
    return run.backbone.resolution // run.backbone.vae_scale_factor if fine else run.backbone.attention_size


def _geometry(run: RunContext, label_side: int) -> dict[str, Any]:
    """What a training set takes over from the backbone; samples of one batch need label maps of one side."""
    return {
        "resolution": run.backbone.resolution,
        "vae_scale_factor": run.backbone.vae_scale_factor,
        "attention_size": label_side,
        "num_train_timesteps": run.backbone.noise_scheduler.config.num_train_timesteps,
        "draw_timestep": objective_of(run.backbone).shifted(run.settings.data.timestep_shift).draw_timestep,
    }
