"""Trains the embedded networks."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path

from partcraft_lit.parts.mini import MiniSettings, save_patch_network
from partcraft_lit.pretrain import oracle
from partcraft_lit.pretrain.loop import LoopSettings
from partcraft_lit.pretrain.patch_features import train_patch_features
from partcraft_lit.run.stages import Stages
from partcraft_lit.settings import LoopLength, PretrainSettings
from partcraft_lit.zoo.scenes import PretrainingScenes


def pretrain(settings: PretrainSettings, folder: Path, *, device: str) -> Path:
    """``partcraft pretrain``: one of the embedded networks, from nothing or from where it was stopped.

    Args:
        settings: what the configuration says.
        folder: run folder; checkpoints, curves and sample sheet are in its ``checkpoints``.
        device: where to train, as torch writes it.

    Returns:
        The folder with the weights: ``output_dir``, or ``weights`` in the run folder.
    """
    stages = Stages()
    work, made = folder / "checkpoints", folder / "weights"
    work.mkdir(parents=True, exist_ok=True)
    train = {"model": _model, "features": _features, "oracle": _oracle}[settings.stage]
    with stages.stage(f"pretrain {settings.stage}"):
        train(settings, device, work, made, stages)
    if settings.output_dir is None:
        stages.say(f"Weights: {made}")
        return made
    replace_folder(made, settings.output_dir)
    stages.say(f"Weights: {settings.output_dir}")
    return settings.output_dir


def replace_folder(made: Path, place: Path) -> None:
    """Puts a copy of one folder in the place of another; until the copy is whole, the old one stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new, old = (place.with_name(f".{place.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    shutil.copytree(made, new)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _model(settings: PretrainSettings, device: str, work: Path, made: Path, stages: Stages) -> None:
    from partcraft_lit.pretrain import (
        recipe,
    )  # diffusers' pipelines take seconds to import, and the other verbs need none

    autoencoder, denoiser = _loop(settings.autoencoder, device), _loop(settings.denoiser, device)
    recipe.pretrain(settings.seed, autoencoder, denoiser, work, made, stages.say)


def _features(settings: PretrainSettings, device: str, work: Path, made: Path, stages: Stages) -> None:
    scenes = PretrainingScenes(settings.seed, pair_share=0.0)
    network = train_patch_features(scenes, _loop(settings.features, device), work, stages.say)
    save_patch_network(network, made, MiniSettings(), {**asdict(settings.features), "scenes_seed": settings.seed})


def _oracle(settings: PretrainSettings, device: str, work: Path, made: Path, stages: Stages) -> None:
    whole = work / "whole.safetensors"
    first = oracle.train_oracle(_loop(settings.oracle, device), work / "whole", stages.say, settings.seed, missing=0.0)
    oracle.save_oracle(first, whole)
    missing = _loop(settings.oracle_missing, device)
    network = oracle.train_oracle(missing, work / "missing", stages.say, settings.seed + 1, start=whole)
    oracle.save_oracle(network, made / "oracle.safetensors")


def _loop(length: LoopLength, device: str) -> LoopSettings:
    return LoopSettings(**asdict(length), device=device)
