"""The part predictor of a run: fitted to its latents once, kept in the run folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from partcraft_lit.callbacks.part_prediction import PartPredictionTerm
from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.data.training_set import TrainingSet
from partcraft_lit.losses.objective import objective_of
from partcraft_lit.methods.latent_predictor import LatentPartPredictor, fit_latent_predictor

#: In the folder of parts of a run.
FILE_NAME = "latent_predictor.safetensors"
_STEPS = 300
_BATCH_SIZE = 32


def part_prediction_term(run: RunContext) -> PartPredictionTerm | None:
    """The term of ``loss.predictor``; None if its weight is 0."""
    weight = run.settings.loss.predictor
    if not weight:
        return None
    vocabulary = run.module.method.vocabulary
    predictor = LatentPartPredictor(
        run.backbone.latent_channels, vocabulary.num_parts, vocabulary.max_codes, run.settings.seed
    )
    path, parts = run.folder / "parts" / FILE_NAME, run.discovery.dictionary.hash
    stored = _read(path, parts)
    if stored:  # of the run that is continued: a predictor fitted anew might differ in its last bits
        predictor.load_state_dict(stored)
        predictor.requires_grad_(False).eval()
    else:
        with run.stages.stage("fit part predictor"):
            fit_latent_predictor(predictor, _batches(run), _STEPS, run.settings.seed)
        if is_first_process():
            atomic_write(path, save(predictor.state_dict(), {"parts": parts}))
    return PartPredictionTerm(weight, predictor, objective_of(run.backbone))


def _read(path: Path, parts: str) -> dict[str, Tensor]:
    """Weights of a stored predictor of these parts; nothing if there is none, or parts were corrected since."""
    if not path.is_file():
        return {}
    with safe_open(path, framework="pt") as file:
        if (file.metadata() or {}).get("parts") != parts:
            return {}
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _batches(run: RunContext) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Plain samples, others than those of training."""
    backbone = run.backbone
    examples = TrainingSet(
        seed=derive_seed(run.settings.seed, "predictor"),
        source_len=len(run.discovery.codes),
        latents=run.latents,
        label_maps=run.discovery.label_maps,
        codes=run.discovery.codes,
        make_caption=lambda codes, generator: "",
        resolution=backbone.resolution,
        vae_scale_factor=backbone.vae_scale_factor,
        attention_size=backbone.resolution // backbone.vae_scale_factor,
        num_train_timesteps=1,
        flip=run.settings.data.flip,
        crop=run.settings.data.crop,
    )
    for step in range(_STEPS):
        batch = [examples[step * _BATCH_SIZE + number] for number in range(_BATCH_SIZE)]
        yield (
            torch.stack([example.latents for example in batch]),
            torch.stack([example.label_map for example in batch]),
            torch.stack([example.codes for example in batch]),
        )
