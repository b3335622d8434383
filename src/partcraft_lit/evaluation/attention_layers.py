"""Ranks the layers of a denoiser by how well the attention of part tokens falls on the parts of images."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.types import TrainingBatch
from partcraft_lit.losses.objective import objective_of
from partcraft_lit.metrics.part_maps import part_map_scores
from partcraft_lit.module import PersonalizationModule

FILE_NAME = "attention_layers.csv"


@dataclass(frozen=True)
class LayerScore:
    """Of one layer and target: means over foreground parts of means over images, see ``PartMapScores``.

    Attributes:
        layer: module name inside the denoiser.
        target: what is read of it: "probabilities" or "outputs".
        side: of its maps.
        auc, iou, inside: how well they fall on the parts.
        read: whether attention losses read this layer and target in this run.
    """

    layer: str
    target: str
    side: int
    auc: float
    iou: float
    inside: float
    read: bool


@torch.no_grad()
def rank_layers(
    module: PersonalizationModule,
    batches: Iterable[TrainingBatch],
    part_vectors: Callable[[TrainingBatch], Tensor] | None = None,
) -> list[LayerScore]:
    """Scores of all layers and targets that the backbone can read, the best AUC first.

    Args:
        module: of a run, in evaluation mode.
        batches: images with the captions of their parts; label maps are as fine as scores shall be.
        part_vectors: (B, T, width) of the part tokens of a batch; None for those of the run.
    """
    backbone, num_parts = module.backbone, module.method.vocabulary.num_parts
    found: dict[tuple[str, str], list[tuple[int, Tensor]]] = {}
    for batch in batches:
        on_device = batch.to(module.device)
        for target, layers in backbone.readable_attention().items():
            vectors = (part_vectors or module.part_vectors)(on_device)
            for layer, maps in _layer_maps(module, on_device, vectors, layers, target).items():
                scores = part_map_scores(maps, batch.tokens.part_ids, batch.label_map, num_parts)
                values = torch.stack([scores.auc, scores.iou, scores.inside])[..., 1:]  # without the background
                found.setdefault((target, layer), []).append((maps.shape[-1], values))
    ranked = []
    for (target, layer), parts in found.items():
        of_images = torch.cat([values for _, values in parts], dim=1)  # (3, images, M)
        auc, iou, inside = of_images.nanmean(dim=1).nanmean(dim=1).tolist()
        read = target == backbone.attention_target and layer in backbone.attention_layers
        ranked.append(LayerScore(layer, target, parts[0][0], auc, iou, inside, read))
    return sorted(ranked, key=lambda score: score.auc, reverse=True)


def word_vectors(module: PersonalizationModule, names: Sequence[str]) -> Callable[[TrainingBatch], Tensor]:
    """``part_vectors`` of the words that parts are called by, as the text encoder reads each in "a photo of a WORD".

    From here on the module's part vectors enter behind the text encoder.

    Args:
        module: changed in where its part vectors enter.
        names: of all M + 1 parts.

    Raises:
        UserError: for a name that is more than one token, where the backbone refuses these.
    """
    module.backbone.inject = "after"
    states = module.backbone.word_states(names)  # (M + 1, width)
    return lambda batch: states[batch.tokens.part_ids.clamp_min(0)]


def _layer_maps(
    module: PersonalizationModule, batch: TrainingBatch, vectors: Tensor, layers: Sequence[str], target: str
) -> Mapping[str, Tensor]:
    """Layer name -> (B, T, side, side) attention of the part tokens in one denoising step."""
    backbone, objective = module.backbone, objective_of(module.backbone)
    conditioning = backbone.encode_prompts(batch.tokens, vectors, batch.crops)
    noisy_latents = objective.add_noise(batch.latents, batch.noise, batch.timesteps)
    capture = backbone.capture_attention(layers, target)
    try:
        with capture.armed(batch.tokens.part_positions):
            backbone.denoise(noisy_latents, batch.timesteps, conditioning)
        return capture.layer_maps()
    finally:
        capture.remove()


def write_layers(scores: Sequence[LayerScore], path: Path) -> None:
    """Writes the ranking as CSV, six digits."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in fields(LayerScore)], lineterminator="\n")
    writer.writeheader()
    for score in scores:
        row = asdict(score)
        writer.writerow({key: f"{value:.6g}" if isinstance(value, float) else value for key, value in row.items()})
    atomic_write(path, text.getvalue())


def layers_table(scores: Sequence[LayerScore]) -> list[str]:
    """Lines for the console; a star marks what the run reads."""
    width = max(len(score.layer) for score in scores)
    lines = [f"     {'layer':<{width}}  {'target':<13}  side    AUC    IoU  inside"]
    for place, score in enumerate(scores, start=1):
        lines.append(
            f"{place:>3}{'*' if score.read else ' '} {score.layer:<{width}}  {score.target:<13}  {score.side:>4}  "
            f"{score.auc:.3f}  {score.iou:.3f}   {score.inside:.3f}"
        )
    return lines
