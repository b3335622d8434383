"""What a report holds. Everything but the title may be missing; a section without content is left out.

Images are (3, height, width) uint8 tensors, parts are indices into ``Report.part_names``, whose first is the
background.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.visualization import (
    fit_square,
    heat_overlay,
    highlight_part,
    overlay_parts,
    part_colors,
    upscale,
)
from partcraft_lit.metrics.composition import PartScores

#: Longer side of images on which overlays are drawn, so that outlines stay thin in the report.
OVERLAY_SIDE = 256


@dataclass(frozen=True)
class Stat:
    """A number for the head of the report: "0.46", "exact matches", "ceiling 0.71"."""

    value: str
    label: str
    note: str = ""


@dataclass(frozen=True)
class SourcePart:
    """Where one part of a hybrid comes from.

    Attributes:
        part: which part.
        image: the source image, the part standing out; see :func:`source_part`.
        caption: the source in words: a species, a file.
        matched: whether the part of the hybrid is the requested one; None if unknown.
    """

    part: int
    image: Tensor
    caption: str = ""
    matched: bool | None = None


@dataclass(frozen=True)
class Composition:
    """A hybrid: its sources, the generated image, and what a perfect composer would have drawn, where that is known."""

    sources: Sequence[SourcePart]
    image: Tensor
    prompt: str
    truth: Tensor | None = None
    note: str = ""


@dataclass(frozen=True)
class DiscoveredImage:
    """A source image beside itself with its parts tinted; see :func:`discovered_image`."""

    image: Tensor
    overlay: Tensor
    name: str = ""


@dataclass(frozen=True)
class PartSummary:
    """Statistics of a part.

    Attributes:
        part: which part.
        coverage: share of all places that belong to it, 0...1.
        images: in how many images it is visible.
        codes: how many codes it has.
    """

    part: int
    coverage: float
    images: int
    codes: int


@dataclass(frozen=True)
class Plate:
    """A large image with a caption, such as an atlas page or a sample grid."""

    image: Tensor
    caption: str


@dataclass(frozen=True)
class AttentionMap:
    """Where the tokens of one part look; ``inside`` is the share on the part itself, None where it is not in sight."""

    part: int
    image: Tensor
    inside: float | None = None


@dataclass(frozen=True)
class AttentionRow:
    """A probe image with its parts, its prompt, and a map per part."""

    overlay: Tensor
    prompt: str
    maps: Sequence[AttentionMap]


@dataclass(frozen=True)
class Curve:
    """A line: (step, value) points by step. ``part`` gives it that part's colour."""

    name: str
    points: Sequence[tuple[float, float]]
    part: int | None = None


@dataclass(frozen=True)
class Chart:
    """A line chart; with ``log`` None the axis is logarithmic where the values span a factor of 20 or more."""

    title: str
    curves: Sequence[Curve]
    note: str = ""
    log: bool | None = None


@dataclass(frozen=True)
class ScoreRow:
    """Scores of one protocol: the trained model, and between what they lie.

    Attributes:
        protocol: what was asked for: "Reconstruction", "2 species".
        scores: of the trained model.
        ceiling: of real images read twice; nothing generated can be expected to do better.
        untrained: of the model before training, which nothing worth its training may fall below.
    """

    protocol: str
    scores: PartScores
    ceiling: PartScores | None = None
    untrained: PartScores | None = None


@dataclass(frozen=True)
class WholeImageRow:
    """Metrics of the whole images of one protocol by one network.

    Attributes:
        protocol: what was asked for.
        network: as it stands in the keys: "tf-299".
        metrics: metric -> value: "fid", "kid", "kid_error", "likeness", "copied", ...
        ceiling: the same metrics of the images of a perfect model, as far as they are known.
    """

    protocol: str
    network: str
    metrics: Mapping[str, float]
    ceiling: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeTable:
    """What one judge says of the parts.

    Attributes:
        judge: by its name.
        auc: part -> how well it tells codes of real images apart; 0.5 is chance.
        unreadable: parts that it cannot read.
        agreement: part, or "all" -> AUC against the oracle; empty where the truth is not known.
        protocols: protocol -> calibrated score of each part, of "all" and "without_background".
    """

    judge: str
    auc: Mapping[str, float]
    unreadable: Sequence[str]
    agreement: Mapping[str, float]
    protocols: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Stage:
    """What took how long."""

    name: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Report:
    """All of a report.

    Attributes:
        title: the run in a few words.
        summary: one or two sentences under it.
        part_names: names of all M + 1 parts, the background first.
        stats: the headline metrics.
        compositions: the headline: hybrids, from their sources.
        marks: a sentence on how ``matched`` of their parts was decided.
        discovered: source images and their parts.
        parts: a row of statistics per part.
        atlas: plates of the dictionary.
        attention: where part tokens look.
        charts: curves of training.
        samples: sample grids over the course of training.
        scores: a row per protocol.
        whole_images: a row per protocol and network.
        judges: a table per judge.
        stages: times.
        settings: the resolved configuration, nested.
        environment: versions and hardware, nested.
        command: how the run was started.
        notes: what a reader must know: images rejected, K lowered, a resume, ...
        created: when the report was written.
    """

    title: str
    summary: str = ""
    part_names: Sequence[str] = ("background",)
    stats: Sequence[Stat] = ()
    compositions: Sequence[Composition] = ()
    marks: str = ""
    discovered: Sequence[DiscoveredImage] = ()
    parts: Sequence[PartSummary] = ()
    atlas: Sequence[Plate] = ()
    attention: Sequence[AttentionRow] = ()
    charts: Sequence[Chart] = ()
    samples: Sequence[Plate] = ()
    scores: Sequence[ScoreRow] = ()
    whole_images: Sequence[WholeImageRow] = ()
    judges: Sequence[JudgeTable] = ()
    stages: Sequence[Stage] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    notes: Sequence[str] = ()
    created: str = ""


def source_part(
    part: int, image: Tensor, label_map: Tensor, num_parts: int, caption: str = "", matched: bool | None = None
) -> SourcePart:
    """Draws a source with its chosen part standing out; ``num_parts`` is M."""
    shown = highlight_part(fit_square(image, OVERLAY_SIDE), _square(label_map), part, part_colors(num_parts + 1))
    return SourcePart(part=part, image=shown, caption=caption, matched=matched)


def discovered_image(image: Tensor, label_map: Tensor, num_parts: int, name: str = "") -> DiscoveredImage:
    """Draws the parts over an image of any aspect; ``num_parts`` is M."""
    large = upscale(image, OVERLAY_SIDE)
    return DiscoveredImage(large, overlay_parts(large, label_map, part_colors(num_parts + 1)), name)


def attention_rows(
    images: Tensor, label_map: Tensor, maps: Tensor, part_ids: Tensor, prompts: Sequence[str], num_parts: int
) -> list[AttentionRow]:
    """Rows from one forward pass.

    Args:
        images: (B, 3, H, W) uint8.
        label_map: (B, s, s) part of each place.
        maps: (B, T, s, s) attention of each part token.
        part_ids: (B, T) part of each token, -1 where unused; tokens of one part are summed.
        prompts: the B captions.
        num_parts: foreground parts M.
    """
    colors = part_colors(num_parts + 1)
    rows = []
    for image, labels, heat, ids, prompt in zip(images, label_map, maps, part_ids, prompts, strict=True):
        large = upscale(image, OVERLAY_SIDE)
        parts = sorted(set(ids[ids >= 0].tolist()))
        shown = [_attention_map(part, large, heat[ids == part].sum(dim=0), labels == part) for part in parts]
        rows.append(AttentionRow(overlay_parts(large, labels, colors), prompt, shown))
    return rows


def _attention_map(part: int, image: Tensor, heat: Tensor, region: Tensor) -> AttentionMap:
    total = float(heat.sum())
    inside = float(heat[region].sum()) / total if total > 0 and bool(region.any()) else None
    return AttentionMap(part, heat_overlay(image, heat), inside)


def training_charts(curves: Mapping[str, Sequence[tuple[int, float]]], part_names: Sequence[str] = ()) -> list[Chart]:
    """Charts of a run's logged metrics, as :func:`partcraft_lit.callbacks.metrics_log.read_metrics` gives them.

    Every ``train/loss*`` has a chart, the attention inside of parts one together; other metrics are left out.
    """
    losses = sorted((key for key in curves if key.startswith("train/loss")), key=_loss_order)
    charts = [Chart(_loss_title(key), [Curve(key, curves[key])]) for key in losses]
    prefix = "parts/attention_inside_"
    inside = [
        Curve(name, curves[prefix + name], part=part) for part, name in enumerate(part_names) if prefix + name in curves
    ]
    if inside:
        note = "Share of a part's attention that lies on the part itself."
        charts.append(Chart("Attention on the own part", inside, note, log=False))
    return charts


_LOSS_TITLES = {"loss": "Total loss", "loss_diffusion": "Diffusion loss", "loss_attn": "Attention loss"}


def _loss_title(key: str) -> str:
    name = key.removeprefix("train/")
    return _LOSS_TITLES.get(name, name.replace("_", " ").capitalize())


def _loss_order(key: str) -> tuple[int, str]:
    """The usual three first, others by name."""
    name = key.removeprefix("train/")
    return (list(_LOSS_TITLES).index(name) if name in _LOSS_TITLES else len(_LOSS_TITLES), name)


def _square(label_map: Tensor) -> Tensor:
    """Pads a map with background to a square, as ``visualization.fit_square`` pads the image."""
    height, width = label_map.shape
    side = max(height, width)
    square = torch.zeros(side, side, dtype=label_map.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = label_map
    return square
