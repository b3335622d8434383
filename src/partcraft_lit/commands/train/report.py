"""Gathers what a run has made into its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.callbacks.metrics_log import FILE_NAME, read_metrics
from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.commands.train.logs import FINAL_IMAGES, log_images
from partcraft_lit.commands.train.marks import marks_of
from partcraft_lit.core import environment
from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.images import read_image, to_uint8
from partcraft_lit.core.types import ABSENT, ImageSource, TrainingBatch
from partcraft_lit.core.visualization import fit_square, grid, label, save_png
from partcraft_lit.evaluation.judging import ALL_IMAGES, REAL_IMAGES
from partcraft_lit.evaluation.scorer import labels_of
from partcraft_lit.evaluation.scores import CEILING, Scores
from partcraft_lit.evaluation.truth import true_hybrids
from partcraft_lit.metrics.composition import PartScores, Targets, composition_targets
from partcraft_lit.module import PersonalizationModule
from partcraft_lit.parts.discovery import Discovery
from partcraft_lit.report.html import write_report
from partcraft_lit.report.sections import (
    AttentionRow,
    Composition,
    JudgeTable,
    PartSummary,
    Plate,
    Report,
    ScoreRow,
    Stage,
    Stat,
    WholeImageRow,
    attention_rows,
    discovered_image,
    source_part,
    training_charts,
)

#: Source images shown with their parts.
_SHOWN_IMAGES = 12
_TRUTH = "truth_"


def report(run: RunContext) -> None:
    """``report.html`` in the run folder; one file that needs no network. The first process of a run writes it."""
    if not is_first_process():
        return
    with run.stages.stage("write report"):
        compositions, marks = compose(run)
        save_png(run.folder / "hybrids.png", above_sources(compositions))
        path = write_report(run.folder / "report.html", _content(run, compositions, marks))
    for logger in run.training.loggers:
        log_images(logger, run.folder, FINAL_IMAGES)
        logger.finalize("success")
    run.stages.log(f"Report: {path}")


def above_sources(compositions: Sequence[Composition], side: int = 144) -> Tensor:
    """One column per hybrid: the generated image, and below it where each of its parts was taken from."""
    deepest = max(len(composition.sources) for composition in compositions)
    blank = torch.full((3, 1, 1), 255, dtype=torch.uint8)
    columns = []
    for composition in compositions:
        whole = label(fit_square(composition.image.cpu(), side), "hybrid", "above", size=12)
        parts = [label(fit_square(s.image, side), s.caption, "above", size=12) for s in composition.sources]
        columns.append([whole, *parts, *[blank] * (deepest - len(parts))])
    return grid([cell for row in zip(*columns, strict=True) for cell in row], columns=len(columns), pad=6, border=6)


def _content(run: RunContext, compositions: Sequence[Composition], marks: str) -> Report:
    source, discovery, metadata, names = run.source, run.discovery, run.metadata, run.part_names
    return Report(
        title=f"{source.class_noun or 'object'}s, recomposed by parts".capitalize(),
        summary=_summary(source, discovery),
        part_names=names,
        stats=_stats(metadata, run.scores),
        compositions=compositions,
        marks=marks,
        discovered=[
            discovered_image(source.image(i), discovery.label_maps[i], len(names) - 1, source.name(i))
            for i in _spread(len(source), _SHOWN_IMAGES)
        ],
        parts=[
            PartSummary(number, part["share"], part["images"], part["codes"])
            for number, part in enumerate(metadata["parts"])
            if part["codes"]
        ],
        atlas=_plates(run.folder / "parts"),
        attention=_attention(run.module, run.probe_batch, len(names) - 1),
        charts=training_charts(read_metrics(run.folder / FILE_NAME), names),
        samples=_sample_plates(run.folder / "samples"),
        scores=_score_rows(run.scores),
        whole_images=image_rows(run.scores.pictures),
        judges=judge_tables(run.scores.judges),
        stages=[Stage(name, seconds) for name, seconds in run.stages.seconds.items()],
        settings=run.config,
        environment=environment.describe(),
        command=_command(sys.argv[1:]),
        notes=[*run.notes, *metadata.get("notes", [])],
        created=datetime.now().strftime("%d %B %Y, %H:%M"),
    )


def compose(run: RunContext) -> tuple[list[Composition], str]:
    """The headline: hybrids from as many sources as can be had, beside the true image where it can be drawn.

    Returns:
        The hybrids, and what their marks say.
    """
    settings, source, discovery = run.settings.eval, run.source, run.discovery
    labels = labels_of(source)
    most = len(source) if labels is None else len(labels.unique())
    species = min(4, discovery.codes.shape[1] + 1, most)
    targets = composition_targets(
        discovery.codes,
        species,
        settings.hybrids,
        settings.seed,
        labels,
        present_only=True,
        retired=discovery.dictionary.retired,
    )
    prompts = [run.module.method.plain_caption(row) for row in targets.codes]
    images = run.module.generate(prompts, targets.seeds).cpu()
    marks, explanation = marks_of(run, images, targets)
    truths = true_hybrids(source, targets, run.metadata)
    compositions = [
        Composition(
            sources=_sources(source, discovery, targets, row, marks[row]),
            image=images[row],
            prompt=prompts[row],
            truth=None if truths is None else truths[row],
        )
        for row in range(len(targets))
    ]
    return compositions, explanation


def _sources(
    source: ImageSource, discovery: Discovery, targets: Targets, row: int, marks: Sequence[bool | None]
) -> list[Any]:
    """One image per foreground part that the hybrid shows: where it was taken from, and whether it came out."""
    shown = []
    for part in range(1, targets.codes.shape[1]):
        code, image = int(targets.codes[row, part]), int(targets.sources[row, part])
        if code == ABSENT:
            continue
        shown.append(
            source_part(
                part,
                source.image(image),
                discovery.label_maps[image],
                discovery.dictionary.num_parts,
                source.name(image),
                matched=marks[part],
            )
        )
    return shown


def _summary(source: ImageSource, discovery: Discovery) -> str:
    number = discovery.dictionary.num_parts - len(discovery.dictionary.retired)
    return (
        f"{number} parts were discovered in {len(source):,} images without labels. Every code "
        "of a part has its own token; a prompt with tokens of several images composes an object that none shows."
    )


def _stats(metadata: Mapping[str, Any], scores: Scores) -> list[Stat]:
    stats = []
    if "quality" in metadata:
        quality = metadata["quality"]
        stats.append(Stat(f"{quality['mean_part_iou']:.2f}", "part IoU", "discovered parts against the truth"))
    if "annotations" in metadata:
        annotations = metadata["annotations"]
        stats.append(Stat(f"{annotations['box_iou']:.2f}", "box IoU", "discovered foreground against annotated boxes"))
        if annotations["part_of"]:
            stats.append(
                Stat(f"{annotations['keypoint_accuracy']:.0%}", "keypoints in their part", "of those annotated")
            )
    ceiling = scores.ceilings.get("vae_round_trip")
    for protocol, values in scores.protocols.items():
        if protocol in ("reconstruction", "4 species"):
            note = f"ceiling {ceiling.emr['all']:.2f}" if ceiling else ""
            stats.append(Stat(f"{values.emr['all']:.2f}", f"EMR, {protocol}", note))
    for protocol, metrics in scores.truth.items():
        if "part_accuracy" in metrics and protocol in ("reconstruction", "4 species"):
            stats.append(Stat(f"{metrics['part_accuracy']:.0%}", f"part accuracy, {protocol}", "read by the oracle"))
    return stats


def _score_rows(scores: Scores) -> list[ScoreRow]:
    ceiling = scores.ceilings.get("vae_round_trip")
    rows = [
        ScoreRow(protocol.capitalize(), values, ceiling, scores.untrained.get(protocol))
        for protocol, values in scores.protocols.items()
    ]
    return rows + [_ceiling_row(name, values) for name, values in scores.ceilings.items()]


def _ceiling_row(name: str, values: PartScores) -> ScoreRow:
    return ScoreRow(f"Real images, {name.replace('_', ' ')}", values)


def image_rows(scores: Mapping[str, Mapping[str, float]]) -> list[WholeImageRow]:
    """``fid@<id>`` and the like by protocol -> a row per protocol and network, with the ceiling beside it."""
    rows = []
    for protocol, metrics in scores.items():
        if protocol.startswith(CEILING):
            continue
        ceilings = scores.get(CEILING + protocol, {})
        for network in dict.fromkeys(key.partition("@")[2] for key in metrics if "@" in key):
            values = _of_network(metrics, network)
            # of concepts: what images of the truth have among themselves
            known = {key.removeprefix(_TRUTH): value for key, value in values.items() if key.startswith(_TRUTH)}
            own = {key: value for key, value in values.items() if not key.startswith(_TRUTH)}
            rows.append(WholeImageRow(protocol.capitalize(), network, own, known | _of_network(ceilings, network)))
    return rows


def judge_tables(scores: Mapping[str, Mapping[str, float]]) -> list[JudgeTable]:
    """``<judge>/<kind>/<part>`` by protocol -> a table per judge."""
    of_data = {**scores.get(REAL_IMAGES, {}), **scores.get(ALL_IMAGES, {})}
    protocols = {name: metrics for name, metrics in scores.items() if name not in (REAL_IMAGES, ALL_IMAGES)}
    return [
        JudgeTable(
            judge=judge,
            auc=_of_kind(of_data, f"{judge}/auc/"),
            unreadable=[part for part, readable in _of_kind(of_data, f"{judge}/readable/").items() if not readable],
            agreement=_of_kind(of_data, f"{judge}/agreement/"),
            protocols={
                name.capitalize(): _of_kind(metrics, f"{judge}/calibrated/") for name, metrics in protocols.items()
            },
        )
        for judge in dict.fromkeys(key.partition("/")[0] for key in of_data)
    ]


def _of_kind(metrics: Mapping[str, float], beginning: str) -> dict[str, float]:
    return {key.removeprefix(beginning): value for key, value in metrics.items() if key.startswith(beginning)}


def _of_network(metrics: Mapping[str, float], network: str) -> dict[str, float]:
    return {key.partition("@")[0]: value for key, value in metrics.items() if key.partition("@")[2] == network}


def _attention(module: PersonalizationModule, probe: TrainingBatch, num_parts: int) -> list[AttentionRow]:
    batch = probe.to(module.device)
    maps = module.probe_attention(batch).float().cpu()
    with torch.no_grad():
        images = to_uint8(module.backbone.decode_latents(batch.latents)).cpu()
    return attention_rows(images, probe.label_map, maps, probe.tokens.part_ids, probe.prompts, num_parts)


def _command(arguments: Sequence[str]) -> str:
    """How the run was started; ``train.py`` gets overrides alone, the command line the verb before them."""
    overrides = arguments[1:] if arguments[:1] == ["train"] else arguments
    return shlex.join(["partcraft", "train", *overrides])


def _sample_plates(folder: Path) -> list[Plate]:
    """First, middle and last sample grid."""
    paths = sorted(folder.glob("step_*.png")) if folder.is_dir() else []
    chosen = [paths[index] for index in _spread(len(paths), 3)]
    return [Plate(read_image(path), f"Step {int(path.stem.removeprefix('step_')):,}") for path in chosen]


def _plates(folder: Path) -> list[Plate]:
    captions = {
        "atlas.png": "Parts and their most frequent codes; all codes are in parts/atlas_part*.png",
        "masks.png": "Part masks",
    }
    return [
        Plate(read_image(folder / name), caption) for name, caption in captions.items() if (folder / name).is_file()
    ]


def _spread(length: int, most: int) -> list[int]:
    """At most ``most`` indices spread evenly over a length."""
    if length <= most:
        return list(range(length))
    return [round(index * (length - 1) / (most - 1)) for index in range(most)]
