"""Encodes and caches what training cuts its examples from: images, scaled views of them, prior images."""

from __future__ import annotations

from collections.abc import Callable

from partcraft_lit.commands.train.context import RunContext, ScaledViews
from partcraft_lit.core.types import ImageSource
from partcraft_lit.data.crops import PixelCrops, cache_crops
from partcraft_lit.data.latents import LatentSource, LatentTable, cache_latents
from partcraft_lit.data.prior import prior_source
from partcraft_lit.data.scaled import ScaledImages, ScaledViewTransform


def cache(run: RunContext) -> None:
    """Fills the store with latents.

    Prior images are drawn here, before anything is told to train: they show what the backbone draws as it is.
    """
    run.latents = _image_latents(run)
    run.scaled = _scaled_views(run)
    run.prior = _prior_latents(run)


def _image_latents(run: RunContext) -> LatentSource:
    """Latents of the images, encoded as far as ``data.crops`` says."""
    data, backbone = run.settings.data, run.backbone
    if data.crops == "encode":
        return PixelCrops(run.source, backbone.latent_channels, backbone.resolution, backbone.vae_scale_factor)
    with run.stages.stage("encode images") as counter:
        if data.crops == "cut":
            return _cached(run, run.source, counter.count)
        return cache_crops(
            run.source,
            backbone,
            run.store,
            data.crops,
            run.settings.seed,
            backbone.resolution,
            data.encode_batch_size,
            data.latents,
            counter.count,
            centre=data.crop == "center",
        )


def _scaled_views(run: RunContext) -> ScaledViews | None:
    """Latents of ``data.scale_variants`` views of each image; None where images are taken as they are."""
    variants = run.settings.data.scale_variants
    if not variants:
        return None
    views = ScaledImages(
        run.source, variants, run.backbone.resolution, run.backbone.vae_scale_factor, run.settings.seed
    )
    with run.stages.stage("encode scaled images") as counter:
        latents = _cached(run, views, counter.count)
    return ScaledViews(
        latents,
        views.label_maps(run.discovery.label_maps),
        run.discovery.codes.repeat_interleave(variants, dim=0),
        ScaledViewTransform([view.words for view in views.views], variants),
    )


def _prior_latents(run: RunContext) -> LatentTable | None:
    """Latents of the prior images, which are drawn if they are not stored yet; None without prior preservation."""
    prior = run.settings.prior
    if not prior.weight:
        return None
    with run.stages.stage("prior images") as counter:
        images = prior_source(
            prior, run.backbone, run.store, run.source.class_noun, lambda *done: counter.part("drawn", *done)
        )
        return _cached(run, images, lambda *done: counter.part("encoded", *done))


def _cached(run: RunContext, images: ImageSource, progress: Callable[[int, int], None]) -> LatentTable:
    data = run.settings.data
    return cache_latents(
        images, run.backbone, run.store, run.backbone.resolution, data.encode_batch_size, data.latents, progress
    )
