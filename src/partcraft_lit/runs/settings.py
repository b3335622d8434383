"""Settings of runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from partcraft_lit.backbones.settings import HardwareSettings, LoraSettings, SampleSettings
from partcraft_lit.core.settings import PathSettings, Seed
from partcraft_lit.data.settings import DataSettings, PriorSettings
from partcraft_lit.evaluation.settings import EvalSettings
from partcraft_lit.losses.settings import LossSettings
from partcraft_lit.methods.optim import OptimSettings
from partcraft_lit.parts.settings import PartsSettings
from partcraft_lit.tokens.settings import MapperSettings


@dataclass(frozen=True)
class DiscoverSettings:
    """Of a discovery: those of ``partcraft discover``, and a part of every other run's."""

    seed: Seed
    parts: PartsSettings
    paths: PathSettings


@dataclass(frozen=True)
class TrainSettings:
    """``partcraft train``; ``method`` is a :class:`partcraft_lit.methods.method.Recipe`."""

    seed: Seed
    parts: PartsSettings
    data: DataSettings
    method: Any
    prior: PriorSettings
    loss: LossSettings
    mapper: MapperSettings
    lora: LoraSettings
    optim: OptimSettings
    sample: SampleSettings
    eval: EvalSettings
    hardware: HardwareSettings
    paths: PathSettings
