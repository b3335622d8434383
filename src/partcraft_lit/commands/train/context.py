"""What the stages of a run share: each takes from it what earlier stages have filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from torch import Tensor

from partcraft_lit.callbacks.binding import ProbePrompts
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store
from partcraft_lit.core.store.cached import cached_image
from partcraft_lit.core.types import Backbone, ImageSource, PatchFeatures, TrainingBatch
from partcraft_lit.data.latents import LatentSource, LatentTable
from partcraft_lit.data.scaled import ScaledViewTransform
from partcraft_lit.evaluation.sampling import weights_digest
from partcraft_lit.evaluation.scorer import Scorer
from partcraft_lit.evaluation.scores import Scores
from partcraft_lit.judges.judge import PartJudge
from partcraft_lit.metrics.composition import Targets, composition_targets, reconstruction_targets
from partcraft_lit.metrics.features import ImageFeatures
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.corrected_discovery import CorrectionSources
from partcraft_lit.parts.discovery import Discovery
from partcraft_lit.parts.predictor import KMeansPartPredictor
from partcraft_lit.runs.settings import TrainSettings

#: Raise by one when the same model and prompts would give another sample grid.
_GRID_VERSION = 1
#: Images in a sample grid: half reconstructions, half hybrids.
_PROBE_PROMPTS = 8


@dataclass(frozen=True)
class Loaders:
    """Networks of a run; loaded before any work, so that missing weights are reported at once.

    Attributes:
        backbone: the text-to-image model.
        features: the network that describes patches.
        image_features: the networks that score whole images.
        judges: what compares parts, by name.
    """

    backbone: Callable[[], Backbone]
    features: Callable[[], PatchFeatures]
    image_features: Callable[[], Sequence[ImageFeatures]]
    judges: Callable[[], Mapping[str, PartJudge]] = dict


@dataclass(frozen=True)
class Training:
    """Lightning's side of a run.

    Attributes:
        make_trainer: makes the trainer; called with loggers, callbacks and what only the run knows.
        callbacks: those that implement ``callbacks.binding.NeedsRun`` are bound to the run before it fits.
        loggers: where metrics and images go beside the run folder.
        max_seconds: after which training stops; None for no limit.
    """

    make_trainer: Callable[..., Trainer]
    callbacks: Sequence[Callback]
    loggers: Sequence[Logger]
    max_seconds: float | None = None


@dataclass(frozen=True)
class ScaledViews:
    """What takes the place of the images where training sees them at other scales; see ``data.scaled``."""

    latents: LatentTable
    label_maps: Sequence[Tensor]
    codes: Tensor
    transform: ScaledViewTransform


@dataclass(eq=False, repr=False)
class RunContext:
    """One run. Callbacks see it as a :class:`partcraft_lit.callbacks.binding.TrainingRun`.

    Attributes:
        settings: what the configuration says.
        folder: run folder; what is there of an interrupted run is continued.
        source: the images.
        load: its networks.
        training: its trainer, callbacks and loggers.
        resume_from: checkpoint to continue from.
        config: the resolved configuration, for the report.
        corrections: of the parts, and the run whose parts are kept.
        stages: progress and seconds of each stage.
        store: what is computed once for all runs.
        backbone, features, image_features, judges: filled in by ``load_models``.
        notes: by ``check``; what a reader of the report must know.
        discovery, metadata, predictor: by ``discover``; ``metadata`` is the content of ``discovery.json``.
        latents, scaled, prior: by ``cache``; None without scaled views, or without prior images.
        module: by ``build``.
        scorer, scores: by ``score_bounds`` and ``score``.
        probe_batch: by ``fit``.
        metrics: by ``score``, one number per key as in ``scores.json``.
    """

    settings: TrainSettings
    folder: Path
    source: ImageSource
    load: Loaders
    training: Training
    resume_from: Path | None
    config: Mapping[str, Any]
    corrections: CorrectionSources = field(default_factory=CorrectionSources)
    stages: Stages = field(default_factory=Stages)
    store: Store = field(init=False)
    backbone: Backbone = field(init=False)
    features: PatchFeatures = field(init=False)
    image_features: Sequence[ImageFeatures] = field(init=False)
    judges: Mapping[str, PartJudge] = field(init=False)
    discovery: Discovery = field(init=False)
    metadata: dict[str, Any] = field(init=False)
    notes: list[str] = field(init=False)
    predictor: KMeansPartPredictor = field(init=False)
    latents: LatentSource = field(init=False)
    scaled: ScaledViews | None = field(init=False)
    prior: LatentTable | None = field(init=False)
    module: PersonalizationModule = field(init=False)
    probe_batch: TrainingBatch = field(init=False)
    scorer: Scorer = field(init=False)
    scores: Scores = field(init=False)
    metrics: dict[str, float] = field(init=False)

    def __post_init__(self) -> None:
        self.store = Store(self.settings.paths.store)

    @property
    def part_names(self) -> Sequence[str]:
        return self.discovery.dictionary.names

    @cached_property
    def probe_prompts(self) -> ProbePrompts:
        """Reconstructions, then hybrids of as many images as can be had, at most four."""
        targets = probe_targets(
            self.scorer.codes, self.scorer.labels, self.settings.eval.seed, self.discovery.dictionary.retired
        )
        prompts = [self.module.method.plain_caption(row) for row in targets.codes]
        return ProbePrompts(prompts, targets.seeds, targets.codes)

    def image_name(self, index: int) -> str:
        return self.source.name(index // max(1, self.settings.data.scale_variants))

    def cached_grid(self, key: Sequence[Any], draw: Callable[[], Tensor]) -> Tensor:
        model = [_GRID_VERSION, weights_digest(self.module), asdict(self.module.sampling)]
        return cached_image(self.store, "grids", [*model, *key], draw)


def probe_targets(codes: Tensor, labels: Tensor | None, seed: int, retired: Sequence[int] = ()) -> Targets:
    half = _PROBE_PROMPTS // 2
    sources = len(codes) if labels is None else len(labels.unique())
    again = reconstruction_targets(codes, half, seed)
    hybrids = composition_targets(
        codes,
        min(4, codes.shape[1] - len(retired) + 1, sources),
        half,
        seed,
        labels,
        present_only=True,
        retired=retired,
    )
    return Targets(
        torch.cat([again.codes, hybrids.codes]),
        torch.cat([again.sources, hybrids.sources]),
        again.seeds + hybrids.seeds,
    )
