"""Trains the embedded networks."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from partcraft_lit.core.progress import Stages
from partcraft_lit.world.mini_features import MiniSettings, save_patch_network
from partcraft_lit.world.pretrain import oracle, recipe
from partcraft_lit.world.pretrain.dit import pretrain_transformer
from partcraft_lit.world.pretrain.loop import LoopSettings
from partcraft_lit.world.pretrain.patch_features import train_patch_features
from partcraft_lit.world.pretrain.pool import OWN_FOLDER, PoolSettings
from partcraft_lit.world.zoo.scenes import PretrainingScenes


def pretrain(
    stage: str,
    seed: int,
    loops: Mapping[str, LoopSettings],
    folder: Path,
    output_dir: Path | None,
    grounding_weight: float,
    pool: PoolSettings,
) -> Path:
    """One of the embedded networks, from scratch or from where it was stopped.

    Args:
        stage: "model", "dit", "features" or "oracle".
        seed: of images and first weights.
        loops: "autoencoder", "denoiser", "polish", "dit", "features", "oracle", "oracle_missing" ->
            how that network trains.
        folder: run folder; checkpoints, curves and sample sheet are in its ``checkpoints``.
        output_dir: folder that the weights replace; None leaves them in ``weights`` of the run folder.
        grounding_weight: of the loss that ties words to parts, in the denoiser of the model.
        pool: where images of "model" and "dit" come from.

    Returns:
        The folder with the weights.
    """
    stages = Stages()
    work, made = folder / "checkpoints", folder / "weights"
    work.mkdir(parents=True, exist_ok=True)
    lengths = loops["autoencoder"], loops["denoiser"], loops["polish"]
    trainers: dict[str, Callable[[], object]] = {
        "model": lambda: recipe.pretrain(seed, *lengths, work, pool, made, stages.log, grounding_weight),
        "dit": lambda: pretrain_transformer(seed, loops["dit"], pool, work, made, stages.log, grounding_weight),
        "features": lambda: _features(seed, loops, work, made, stages),
        "oracle": lambda: _oracle(seed, loops, work, made, stages),
    }
    with stages.stage(f"pretrain {stage}"):
        trainers[stage]()
    shutil.rmtree(work / OWN_FOLDER, ignore_errors=True)  # gigabytes that nobody needs any more
    if output_dir is not None:
        replace_folder(made, output_dir)
        made = output_dir
    stages.log(f"Weights: {made}")
    return made


def replace_folder(made: Path, place: Path) -> None:
    """Puts a copy of one folder in the place of another; until the copy is whole, the old one stays."""
    place.parent.mkdir(parents=True, exist_ok=True)
    new, old = (place.with_name(f".{place.name}.{os.getpid()}.{kind}") for kind in ("new", "old"))
    shutil.copytree(made, new)
    if place.exists():
        place.rename(old)
    new.rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _features(seed: int, loops: Mapping[str, LoopSettings], work: Path, made: Path, stages: Stages) -> None:
    network = train_patch_features(PretrainingScenes(seed, pair_share=0.0), loops["features"], work, stages.log)
    length = asdict(loops["features"])
    length.pop("device")
    save_patch_network(network, made, MiniSettings(), {**length, "scenes_seed": seed})


def _oracle(seed: int, loops: Mapping[str, LoopSettings], work: Path, made: Path, stages: Stages) -> None:
    whole = work / "whole.safetensors"
    first = oracle.train_oracle(loops["oracle"], work / "whole", stages.log, seed, missing=0.0)
    oracle.save_oracle(first, whole)
    network = oracle.train_oracle(loops["oracle_missing"], work / "missing", stages.log, seed + 1, start=whole)
    oracle.save_oracle(network, made / "oracle.safetensors")
