"""What the hardware settings ask for, done to networks and batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from partcraft_lit.backbones.settings import HardwareSettings
from partcraft_lit.core.store.mapped import MappedWeights
from partcraft_lit.core.types import Backbone, PatchFeatures
from partcraft_lit.runs.settings import TrainSettings


def apply_memory_options(hardware: HardwareSettings, backbone: Backbone, folder: Path | None = None) -> None:
    """Once images are encoded and before anything trains; ``folder`` as for ``offloaded``."""
    if hardware.gradient_checkpointing:
        backbone.enable_gradient_checkpointing()
    if hardware.compile:
        backbone.compile_blocks()
    if "vae" in hardware.offload:
        backbone.offload_vae(folder)


def in_passes(settings: TrainSettings) -> tuple[TrainSettings, int]:
    """Settings with batches that fit, and in how many passes a step takes the batch that was asked for.

    Samples are numbered through, and losses are means over samples: the passes of a step hold the samples that one pass
    would hold, and their mean gradient is its gradient.
    """
    hardware, data, prior = settings.hardware, settings.data, settings.prior
    if hardware.max_batch_size is None:
        return settings, 1
    most = hardware.max_batch_size
    passes = hardware.passes(data.batch_size, images_per_example(settings))
    fewer = replace(data, batch_size=data.batch_size // passes, encode_batch_size=min(data.encode_batch_size, most))
    sampled = replace(prior, batch_size=min(prior.batch_size, most))
    return replace(settings, data=fewer, prior=sampled), passes


def images_per_example(settings: TrainSettings) -> int:
    """Images that an example takes through the networks: itself, and its prior image where the run has such."""
    return 2 if settings.prior.weight else 1


def batch_limit_note(settings: TrainSettings) -> str | None:
    """A sentence where more images go through the networks at once than ``hardware.max_batch_size`` says."""
    most, least = settings.hardware.max_batch_size, images_per_example(settings)
    if most is None or most >= least:
        return None
    return (
        f"hardware.max_batch_size={most}: {least} images go through the networks at once, since an example and its "
        "prior image are never parted. hardware.gradient_checkpointing=true saves memory, and so does prior.weight=0."
    )


@contextmanager
def offloaded(features: PatchFeatures, hardware: HardwareSettings, folder: Path | None = None) -> Iterator[None]:
    """While it is open, the network that describes patches is on the CPU, where it still works, only slower.

    Where it is on the CPU anyway, it is in a file from now on, and read from there when it works.

    Args:
        features: with or without a network.
        hardware: whether they rest.
        folder: for that file, which nobody sees; see ``MappedWeights``.
    """
    mover: Any = features
    if "features" not in hardware.offload or not isinstance(getattr(features, "network", None), torch.nn.Module):
        yield  # colours have no network
        return
    home = torch.device(mover.device)
    if home.type == "cpu":
        MappedWeights(mover.network, folder)
        yield
        return
    try:
        _move(mover, torch.device("cpu"))
        yield
    finally:
        _move(mover, home)


def _move(features: Any, device: torch.device) -> None:
    features.network.to(device)
    features.device = device
