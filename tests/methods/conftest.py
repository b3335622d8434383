"""Methods as their YAML makes them, around a dictionary of two parts and a tiny Stable Diffusion."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.utils.data import DataLoader

from partcraft_lit.commands import train
from partcraft_lit.config import compose as config
from partcraft_lit.core.types import ABSENT, Backbone, TrainingBatch, TrainingExample
from partcraft_lit.data.datamodule import Collate
from partcraft_lit.methods.method import MethodContext
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.runs.assembly import build_module
from partcraft_lit.runs.settings import TrainSettings
from partcraft_lit.tokens.grammar import PartVocabulary

NAMES, CODES = ("background", "head", "wing"), (3, 3, 3)


@functools.cache
def settings_of(*overrides: str) -> TrainSettings:
    """What a command line with these overrides says."""
    return train.check(config.plain(config.compose("train", ["parts.M=2", "parts.K=3", *overrides])))


def centroids(codes: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """(K_m, 5) random directions of each part."""
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.nn.functional.normalize(torch.randn(number, 5, generator=generator), dim=1) for number in codes)


def build(backbone: Backbone, *overrides: str, codes: tuple[int, ...] = CODES) -> PersonalizationModule:
    """The module of these overrides, on a backbone that is the caller's to change."""
    dictionary = SimpleNamespace(
        names=NAMES[: len(codes)], codes_per_part=codes, code_centroids=centroids(codes), metadata={}
    )
    settings = settings_of(*overrides)
    settings.method.check(settings, "bird")
    return build_module(settings, dictionary, backbone, "bird")


def batch_of(
    module: PersonalizationModule, prior: bool = False, size: int = 2, codes: tuple[int, ...] = (1, 2, 0)
) -> TrainingBatch:
    """Random latents with the method's own captions; beside them prior examples if wanted."""
    backbone = module.backbone
    side = backbone.resolution // backbone.vae_scale_factor
    shape = (backbone.latent_channels, side, side)

    def example(number: int, own: bool = True) -> TrainingExample:
        generator = torch.Generator().manual_seed(2 * number + own)
        shown = torch.tensor(codes) if own else torch.full((len(codes),), ABSENT)
        labels = torch.randint(len(codes), (backbone.attention_size,) * 2, generator=generator)
        return TrainingExample(
            latents=torch.randn(shape, generator=generator),
            noise=torch.randn(shape, generator=generator),
            timestep=int(torch.randint(200, 800, (), generator=generator)),
            label_map=(labels if own else torch.full_like(labels, 255)).to(torch.uint8),
            codes=shown,
            prompt=module.method.make_caption(shown, generator) if own else "a photo of a bird",
            sample_id=number,
            image_id=number,
            crop=(64, 48, 0, 2),
        )

    class Priors:
        def __getitem__(self, number: int) -> TrainingExample:
            return example(number, own=False)

    return Collate(module.method.tokenize, Priors() if prior else None)([example(n) for n in range(size)])


class Losses(Callback):
    """The loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: PersonalizationModule, *_: object) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def fit(module: PersonalizationModule, batch: TrainingBatch, steps: int, *callbacks: Callback) -> list[float]:
    losses = Losses()
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        callbacks=[losses, *callbacks],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
    )
    trainer.fit(module, DataLoader([batch] * steps, batch_size=None))
    return losses.values


@pytest.fixture
def tools() -> SimpleNamespace:
    return SimpleNamespace(settings_of=settings_of, build=build, batch_of=batch_of, fit=fit, centroids=centroids(CODES))


@pytest.fixture(name="settings_of", scope="session")
def settings_as_typed() -> Callable[..., TrainSettings]:
    """Overrides as a user types them -> settings, unchecked by the method."""
    return lambda *overrides: train.check(config.plain(config.compose("train", list(overrides))))


@pytest.fixture(name="build")
def build_on_fresh_backbone(settings_of, fresh_backbone) -> Callable[..., PersonalizationModule]:
    """Overrides -> a module on a copy of the tiny backbone, unchecked by the method."""

    def module(*overrides: str, vocabulary: PartVocabulary | None = None) -> PersonalizationModule:
        settings = settings_of(*overrides)
        vocabulary = vocabulary or PartVocabulary(NAMES, CODES)
        context = MethodContext(vocabulary, fresh_backbone, "bird", settings.mapper, settings.lora, settings.seed)
        method = settings.method.build(context)
        method.prepare(fresh_backbone)
        return PersonalizationModule(
            fresh_backbone,
            method,
            settings.optim,
            settings.loss.snr_gamma,
            settings.sample,
            snr_form=settings.loss.snr_form,
            region=settings.loss.region,
            region_mean=settings.loss.region_mean,
            prior_weight=settings.prior.weight,
        )

    return module


@pytest.fixture(name="batch_of", scope="session")
def batch_with_captions() -> Callable[..., TrainingBatch]:
    """(module, captions, side of the label maps) -> random latents and labels under these captions."""

    def batch(module: PersonalizationModule, prompts: list[str], label_side: int | None = None) -> TrainingBatch:
        generator = torch.Generator().manual_seed(0)
        resolution = module.backbone.resolution
        side = resolution // module.backbone.vae_scale_factor
        shape = (module.backbone.latent_channels, side, side)
        examples = [
            TrainingExample(
                latents=torch.randn(shape, generator=generator),
                noise=torch.randn(shape, generator=generator),
                timestep=int(torch.randint(1000, (), generator=generator)),
                label_map=torch.randint(3, (label_side or side,) * 2, generator=generator).to(torch.uint8),
                codes=torch.zeros(3, dtype=torch.long),
                prompt=prompt,
                sample_id=number,
                image_id=number,
                crop=(resolution, resolution, 0, 0),
            )
            for number, prompt in enumerate(prompts)
        ]
        return Collate(module.method.tokenize)(examples)

    return batch
