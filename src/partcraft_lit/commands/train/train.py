"""The main job: discover, train, compose, score, report."""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor

from partcraft_lit.callbacks.attention_loss import LossTermOnAttention
from partcraft_lit.callbacks.live_score import read_best
from partcraft_lit.callbacks.metrics_log import append_metrics, read_metrics
from partcraft_lit.commands.discover.discover import discover_parts, write_discovery, write_rejected
from partcraft_lit.commands.train.assembly import build_module
from partcraft_lit.commands.train.memory import offloaded
from partcraft_lit.commands.train.report import write_run_report
from partcraft_lit.commands.train.settings import TrainSettings
from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.store import Store
from partcraft_lit.core.store.cached import cached_image
from partcraft_lit.core.types import ABSENT, Backbone, ImageSource, PatchFeatures, TrainingBatch
from partcraft_lit.data.crops import Encode, PixelCrops, cache_crops, encode_crops
from partcraft_lit.data.datamodule import Collate, PartDataModule
from partcraft_lit.data.latents import LatentSource, LatentTable, cache_latents, posterior
from partcraft_lit.data.prior import FixedCaption, prior_prompt, prior_source
from partcraft_lit.data.scaled import ComposedTransform, ScaledImages, ScaledViewTransform
from partcraft_lit.data.training_set import TrainingSet
from partcraft_lit.evaluation.sampling import weights_digest
from partcraft_lit.evaluation.scoring import (
    Scorer,
    Scores,
    annotation_scores,
    concept_scorer,
    image_scorer,
    labels_of,
    log_scores,
    measure_ceiling,
    score_trained,
    score_untrained,
    write_scores,
)
from partcraft_lit.evaluation.token_space import SILHOUETTE, write_token_space
from partcraft_lit.evaluation.truth import truth_of
from partcraft_lit.metrics.composition import Targets, composition_targets, reconstruction_targets
from partcraft_lit.metrics.features import ImageFeatures
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.dataset_parts import check_dataset_parts
from partcraft_lit.parts.discovery import Discovery
from partcraft_lit.parts.predictor import KMeansPartPredictor

#: Images whose attention is shown over the course of training.
_PROBE_IMAGES = 4
#: Raise by one when the same model and prompts would give another sample grid.
_GRID_VERSION = 1
#: Probe images in a sample grid: half reconstructions, half hybrids.
_PROBE_PROMPTS = 8


def train(
    settings: TrainSettings,
    folder: Path,
    *,
    source: ImageSource,
    load_backbone: Callable[[], Backbone],
    load_features: Callable[[], PatchFeatures],
    load_image_features: Callable[[], Sequence[ImageFeatures]],
    make_trainer: Callable[..., Trainer],
    loggers: Sequence[Logger],
    callbacks: Mapping[str, Callable[..., Callback]],
    make_attention_loss: Callable[..., Callback] | None,
    resume_from: Path | None,
    config: Mapping[str, Any],
) -> dict[str, float]:
    """Runs everything from a folder of images to scores and a report.

    Args:
        settings: what the configuration says.
        folder: run folder; what is there of an interrupted run is continued.
        source: the images.
        load_backbone: loads the text-to-image model; called first, so that missing weights are told at once.
        load_features: loads the network that describes patches.
        load_image_features: loads the networks that score whole images; called early, for the same reason.
        make_trainer: makes Lightning's trainer; called with loggers, callbacks and what only the run knows.
        loggers: where numbers and images go beside the run folder.
        callbacks: name -> maker; called with what only the run knows, see ``_runtime_arguments``.
        make_attention_loss: called with ``num_parts``; None trains without an attention loss.
        resume_from: checkpoint to continue from.
        config: the resolved configuration, for the report.

    Returns:
        One number per key, as in ``scores.json``; empty if scoring is switched off.
    """
    stages = Stages()
    settings.method.check(settings, source.class_noun)
    if settings.parts.source != "discover":
        check_dataset_parts(source, settings.parts)
    if settings.prior.weight:
        prior_prompt(settings.prior, source.class_noun)
    notes = write_rejected(source, folder, stages)
    with stages.stage("load models"):
        backbone, features = load_backbone(), load_features()
        image_features = load_image_features() if settings.eval.enabled else []
    settings.method.check_words(backbone.tokenizers, source.class_noun)
    store = Store(settings.paths.store)
    discovery = discover_parts(settings.parts, settings.seed, source, features, store, stages)
    facts = write_discovery(source, discovery, folder / "parts", store, stages, settings.parts.save_masks)
    latents = image_latents(settings, source, backbone, store, stages)
    scaled = scaled_views(settings, source, discovery, backbone, store, stages)
    # Before anything is told to train: they show what the backbone draws as it is.
    prior = prior_latents(settings, backbone, store, source.class_noun, stages)
    module = build_module(settings, discovery.dictionary, backbone, source.class_noun)
    predictor = KMeansPartPredictor(discovery.dictionary, features)
    truth = truth_of(source, facts)
    images = image_scorer(settings.eval, source, image_features, facts)
    concepts = concept_scorer(settings.eval, source, image_features, discovery.dictionary.names)
    scorer = Scorer(
        settings.eval, predictor, discovery.codes, labels_of(source), folder / "evaluation", truth, images, concepts
    )
    scores = Scores(truth=annotation_scores(facts))
    if settings.eval.enabled:
        scorer.log_left_out(stages)
        with stages.stage("measure ceilings"):
            scores.ceilings = measure_ceiling(scorer, source, backbone, store)
        score_untrained(scorer, module, scores, store, stages)
    probe = probe_batch(settings, module, discovery, latents, backbone)
    with offloaded(features, settings.hardware, store.root):
        fit(
            settings,
            folder,
            module,
            training_set(settings, module, discovery, latents, backbone, scaled=scaled),
            make_trainer,
            loggers,
            _make_callbacks(callbacks, make_attention_loss, folder, module, scorer, probe, store),
            resume_from,
            stages,
            None if prior is None else prior_examples(settings, prior, discovery, backbone, source.class_noun),
            functools.partial(posterior, backbone) if settings.data.crops == "encode" else None,
        )
    module.to(next(backbone.unet.parameters()).device).eval()
    if best := read_best(folder / "checkpoints"):
        stages.log(f"  {best['why']}")
    if not is_first_process():
        return _help_to_score(scorer, module, scores)
    with stages.stage("map tokens"):
        dictionary = discovery.dictionary
        together = write_token_space(folder, module.method.bake(), dictionary.codes_per_part, dictionary.names)
    append_metrics(folder / "metrics.jsonl", _last_step(folder), {SILHOUETTE: together})
    if settings.eval.enabled:
        score_trained(scorer, module, scores, stages)
        log_scores(scores, stages)
    _write_costs(folder, module, stages)
    numbers = write_scores(scores, folder)
    if numbers:
        append_metrics(folder / "metrics.jsonl", _last_step(folder), numbers)
        for logger in loggers:
            logger.log_metrics(numbers)
    with stages.stage("write report"):
        path = write_run_report(
            folder, settings, source, discovery, facts, module, predictor, probe, scores, stages, config, notes
        )
    for logger in loggers:
        logger.finalize("success")
    stages.log(f"Report: {path}")
    return numbers


def _help_to_score(scorer: Scorer, module: PersonalizationModule, scores: Scores) -> dict[str, float]:
    """What further processes of a run do after training: they draw their share, score it all, and write nothing."""
    if scorer.settings.enabled:
        score_trained(scorer, module, scores, Stages())
    return scores.flat()


def fit(
    settings: TrainSettings,
    folder: Path,
    module: PersonalizationModule,
    examples: TrainingSet,
    make_trainer: Callable[..., Trainer],
    loggers: Sequence[Logger],
    callbacks: list[Callback],
    resume_from: Path | None,
    stages: Stages,
    prior: TrainingSet | None = None,
    encode: Encode | None = None,
) -> None:
    """Trains to the trainer's last step, from the beginning or from a checkpoint."""
    trainer = make_trainer(
        logger=list(loggers),
        callbacks=callbacks,
        default_root_dir=folder,
        use_distributed_sampler=False,  # the data module deals samples out itself
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),  # else Lightning would add its own
    )
    data = PartDataModule(
        examples,
        module.method.tokenize,
        settings.data.batch_size,
        settings.data.num_workers,
        trainer.accumulate_grad_batches,
        prior,
        encode,
    )
    if resume_from is not None:
        stages.log(f"Continuing from {resume_from}")
    trained = {name: sum(p.numel() for p in group) for name, group in module.trainable_groups().items()}
    stages.log("  trainable parameters: " + ", ".join(f"{name} {number:,}" for name, number in trained.items()))
    with stages.stage("train"), warnings.catch_warnings():
        # Frozen networks are in evaluation mode on purpose; the other is about Lightning's own code.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
        trainer.fit(module, datamodule=data, ckpt_path=resume_from, weights_only=True)


def image_latents(
    settings: TrainSettings, source: ImageSource, backbone: Backbone, store: Store, stages: Stages
) -> LatentSource:
    """What training cuts its squares from, encoded as far as ``data.crops`` says."""
    data, resolution = settings.data, backbone.resolution
    if data.crops == "encode":
        return PixelCrops(source, backbone.latent_channels, resolution, backbone.vae_scale_factor)
    with stages.stage("encode images") as counter:
        if data.crops == "cut":
            return cache_latents(
                source, backbone, store, resolution, data.encode_batch_size, data.latents, counter.count
            )
        return cache_crops(
            source,
            backbone,
            store,
            data.crops,
            settings.seed,
            resolution,
            data.encode_batch_size,
            data.latents,
            counter.count,
            centre=data.crop == "center",
        )


def training_set(
    settings: TrainSettings,
    module: PersonalizationModule,
    discovery: Discovery,
    latents: LatentSource,
    backbone: Backbone,
    make_caption: Callable[[Tensor, torch.Generator], str] | None = None,
    scaled: ScaledViews | None = None,
) -> TrainingSet:
    """Sample numbers -> examples, with the method's captions unless others are given; of scaled images if wanted."""
    transform = module.method.transform if make_caption is None else None
    return TrainingSet(
        seed=settings.seed,
        source_len=len(scaled.codes if scaled else discovery.codes),
        latents=scaled.latents if scaled else latents,
        label_maps=scaled.label_maps if scaled else discovery.label_maps,
        codes=scaled.codes if scaled else discovery.codes,
        make_caption=make_caption or module.method.make_caption,
        transform=ComposedTransform(scaled.transform, transform) if scaled else transform,
        present_only=settings.data.present_only,
        **_of_backbone(backbone, _label_side(settings, backbone, shown=make_caption is not None)),
        flip=settings.data.flip,
        crop=settings.data.crop,
    )


@dataclass(frozen=True)
class ScaledViews:
    """What takes the place of the images where training sees them at other scales; see ``data.scaled``."""

    latents: LatentTable
    label_maps: Sequence[Tensor]
    codes: Tensor
    transform: ScaledViewTransform


def scaled_views(
    settings: TrainSettings, source: ImageSource, discovery: Discovery, backbone: Backbone, store: Store, stages: Stages
) -> ScaledViews | None:
    """Latents of ``data.scale_variants`` views of each image; None where images are taken as they are."""
    variants = settings.data.scale_variants
    if not variants:
        return None
    images = ScaledImages(source, variants, backbone.resolution, backbone.vae_scale_factor, settings.seed)
    with stages.stage("encode scaled images") as counter:
        latents = cache_latents(
            images,
            backbone,
            store,
            backbone.resolution,
            settings.data.encode_batch_size,
            settings.data.latents,
            counter.count,
        )
    return ScaledViews(
        latents,
        images.label_maps(discovery.label_maps),
        discovery.codes.repeat_interleave(variants, dim=0),
        ScaledViewTransform([view.words for view in images.views], variants),
    )


def prior_latents(
    settings: TrainSettings, backbone: Backbone, store: Store, class_noun: str, stages: Stages
) -> LatentTable | None:
    """Latents of the prior images, which are drawn if they are not stored yet; None without prior preservation."""
    if not settings.prior.weight:
        return None
    with stages.stage("prior images") as counter:
        images = prior_source(settings.prior, backbone, store, class_noun, lambda *done: counter.part("drawn", *done))
        return cache_latents(
            images,
            backbone,
            store,
            backbone.resolution,
            settings.data.encode_batch_size,
            settings.data.latents,
            lambda *done: counter.part("encoded", *done),
        )


def prior_examples(
    settings: TrainSettings, latents: LatentTable, discovery: Discovery, backbone: Backbone, class_noun: str
) -> TrainingSet:
    """Prior images as examples without parts; their noise and timesteps are not those of the images they go with."""
    no_part = torch.full((1, 1), 255, dtype=torch.uint8)
    prompt = prior_prompt(settings.prior, class_noun)
    return TrainingSet(
        seed=derive_seed(settings.seed, "prior"),
        source_len=len(latents),
        latents=latents,
        label_maps=[no_part] * len(latents),
        codes=torch.full((len(latents), discovery.codes.shape[1]), ABSENT),
        make_caption=FixedCaption(prompt),
        **_of_backbone(backbone, _label_side(settings, backbone, shown=False)),
        flip=settings.data.flip,
        crop=settings.data.crop,
    )


def _label_side(settings: TrainSettings, backbone: Backbone, shown: bool) -> int:
    """Side of an example's label map: as fine as the latents where the diffusion loss asks where parts are."""
    latents = backbone.resolution // backbone.vae_scale_factor
    fine = settings.loss.region == "prompted" or settings.data.scale_variants > 0
    return latents if fine and not shown else backbone.attention_size


def _of_backbone(backbone: Backbone, label_side: int) -> dict[str, Any]:
    """What a training set takes over from the backbone; samples of one batch need label maps of one side."""
    return {
        "resolution": backbone.resolution,
        "vae_scale_factor": backbone.vae_scale_factor,
        "attention_size": label_side,
        "num_train_timesteps": len(backbone.noise_scheduler.alphas_cumprod),
    }


def probe_batch(
    settings: TrainSettings,
    module: PersonalizationModule,
    discovery: Discovery,
    latents: LatentSource,
    backbone: Backbone,
) -> TrainingBatch:
    """A few images with all their parts in the caption, at one middling timestep: what attention is shown on."""
    plain = functools.partial(_plain_caption, module)
    still = replace(settings, data=replace(settings.data, flip=False, crop="center"))
    examples = training_set(still, module, discovery, latents, backbone, plain)
    batch = Collate(module.method.tokenize)([examples[number] for number in range(_PROBE_IMAGES)])
    batch = encode_crops(batch, functools.partial(posterior, backbone))
    middle = len(backbone.noise_scheduler.alphas_cumprod) * 2 // 5
    return replace(batch, timesteps=torch.full_like(batch.timesteps, middle))


def _plain_caption(module: PersonalizationModule, codes: Tensor, generator: torch.Generator) -> str:
    return module.method.plain_caption(codes)


def probe_targets(codes: Tensor, labels: Tensor | None, seed: int) -> Targets:
    """Codes for the sample grids: reconstructions, then hybrids of as many images as can be had, at most four."""
    half = _PROBE_PROMPTS // 2
    sources = len(codes) if labels is None else len(labels.unique())
    again = reconstruction_targets(codes, half, seed)
    hybrids = composition_targets(codes, min(4, codes.shape[1] + 1, sources), half, seed, labels, present_only=True)
    return Targets(
        torch.cat([again.codes, hybrids.codes]),
        torch.cat([again.sources, hybrids.sources]),
        again.seeds + hybrids.seeds,
    )


def _make_callbacks(
    makers: Mapping[str, Callable[..., Callback]],
    make_attention_loss: Callable[..., Callback] | None,
    folder: Path,
    module: PersonalizationModule,
    scorer: Scorer,
    probe: TrainingBatch,
    store: Store,
) -> list[Callback]:
    """Each callback with what only the run knows; one that is not listed here gets nothing."""
    names = scorer.predictor.dictionary.names
    targets = probe_targets(scorer.codes, scorer.labels, scorer.settings.seed)
    runtime: dict[str, dict[str, Any]] = {
        "checkpoints": {"folder": folder / "checkpoints"},
        "metrics": {"path": folder / "metrics.jsonl"},
        "samples": {
            "folder": folder / "samples",
            "prompts": [module.method.plain_caption(row) for row in targets.codes],
            "seeds": targets.seeds,
            "remember": functools.partial(_remember_grid, store, module),
        },
        "attention_maps": {"folder": folder / "attention", "batch": probe, "part_names": names},
        "live_score": {
            "folder": folder / "checkpoints",
            "prompts": [module.method.plain_caption(row) for row in targets.codes],
            "seeds": targets.seeds,
            "target_codes": targets.codes,
            "predictor": scorer.predictor,
            "batch": probe,
        },
    }
    made = [maker(**runtime.get(name, {})) for name, maker in makers.items()]
    if make_attention_loss is not None:
        made.append(make_attention_loss(num_parts=len(names) - 1))
    made += [LossTermOnAttention(term) for term in module.method.loss_terms()]
    return made


def _remember_grid(
    store: Store, module: PersonalizationModule, about: Sequence[Any], draw: Callable[[], Tensor]
) -> Tensor:
    """The sample grid of the model as it is."""
    model = [_GRID_VERSION, weights_digest(module), asdict(module.sampling)]
    return cached_image(store, "grids", [*model, *about], draw)


def _write_costs(folder: Path, module: PersonalizationModule, stages: Stages) -> None:
    """``costs.json``: what training took; of a run that was continued, since it was."""
    trained = sum(p.numel() for group in module.trainable_groups().values() for p in group)
    costs = {"trainable_parameters": trained, "train_seconds": round(stages.seconds.get("train", 0.0), 3)}
    atomic_write(folder / "costs.json", json.dumps({**costs, "seconds": stages.seconds}, indent=1) + "\n")


def _last_step(folder: Path) -> int:
    """The step on whose axis the scores of the end are logged."""
    curves = read_metrics(folder / "metrics.jsonl")
    return max((points[-1][0] for points in curves.values()), default=0)
