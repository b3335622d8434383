"""Discovery of the parts of a run: its dictionary, codes, masks, atlas and, with ground truth, its quality."""

from __future__ import annotations

import csv
import functools
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from partcraft_lit.core.environment import is_first_process
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.images import kept_window
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store, stable_hash
from partcraft_lit.core.store.cached import cached_file, cached_image, cached_values
from partcraft_lit.core.types import ABSENT, AnnotatedSource, GroundTruthSource, ImageSource, PatchFeatures
from partcraft_lit.core.visualization import part_colors, resize_labels
from partcraft_lit.data.mask_files import NAMES_FILE
from partcraft_lit.parts.atlas import Atlas
from partcraft_lit.parts.corrected_discovery import CorrectionSources, discover_corrected
from partcraft_lit.parts.corrections import Corrections
from partcraft_lit.parts.corrections_file import FILE_NAME, CorrectionsFile
from partcraft_lit.parts.dataset_parts import dataset_parts
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import CODES_FILE, Discovery
from partcraft_lit.parts.discovery import discover as find_parts
from partcraft_lit.parts.foreground import confidence_in_words
from partcraft_lit.parts.keypoints import score_annotations
from partcraft_lit.parts.quality import PartQuality, score_parts
from partcraft_lit.parts.settings import PartsSettings

#: Raise by one when the same parts would be scored or drawn otherwise.
_VERSION = 3


def discover_into(
    folder: Path,
    settings: PartsSettings,
    seed: int,
    source: ImageSource,
    features: PatchFeatures,
    store: Store,
    stages: Stages,
    corrections: CorrectionSources | None = None,
) -> tuple[Discovery, dict[str, Any]]:
    """Discovers the parts of a run, or reads them from the store or the data set, and writes its ``parts/``.

    Args:
        folder: of the run, which also keeps what was corrected and by what.
        settings, seed, source, features, store: as in ``discovery.discover``.
        stages: logs progress, and what differs from the settings.
        corrections: of the parts.

    Returns:
        The discovery, and its report as plain values.
    """
    if settings.source != "discover":
        with stages.stage("read parts") as counter:
            discovery = dataset_parts(source, features, settings, seed=seed, progress=counter.part)
    else:
        with stages.stage("discover parts") as counter:
            if corrections is None or not corrections.given:
                discovery = find_parts(source, features, settings, seed=seed, store=store, progress=counter.part)
            else:
                discovery, base = discover_corrected(
                    source, features, settings, corrections, seed=seed, store=store, progress=counter.part
                )
                if corrections.file is not None:
                    stages.log(f"  corrections: {corrections.file.path}")
                    _keep(corrections.file, corrections.corrections, base, discovery.dictionary, folder, stages)
        _log_confidence(discovery, stages)
    for note in discovery.report.notes:
        stages.log(f"  {note}")
    return discovery, write_discovery(source, discovery, folder / "parts", store, stages, settings.save_masks)


def _keep(
    file: CorrectionsFile,
    corrections: Corrections,
    base: PartDictionary,
    dictionary: PartDictionary,
    folder: Path,
    stages: Stages,
) -> None:
    """Beside the file and in the run's folder, so that either goes on with these numbers of parts and codes."""
    if not is_first_process():
        return
    own = CorrectionsFile(folder / FILE_NAME)
    if (file.path.is_file() and not own.path.is_file()) or (own.path.is_file() and own.load() != corrections):
        own.save(corrections)
    own.keep(base, dictionary)
    if file != own:
        try:
            file.keep(base, dictionary)
        except UserError as error:
            stages.log(f"  The parts are kept in the run's folder only: {error}")


def _log_confidence(discovery: Discovery, stages: Stages) -> None:
    report = discovery.report
    live = [part for part in report.parts[1:] if part["codes"]]
    shown = ", ".join(f"{part['name']} {part['images']}" for part in live)
    stages.log(f"  {confidence_in_words(report.foreground['confidence'])}; images per part: {shown}")


def write_discovery(
    source: ImageSource, discovery: Discovery, folder: Path, store: Store, stages: Stages, save_masks: bool = False
) -> dict[str, Any]:
    """Dictionary, codes, atlas, masks and report; returns the report, with the quality where there is ground truth.

    Of several processes of a run only the first writes. What an earlier run with these parts has scored and drawn is
    taken from the store.
    """
    metadata = discovery.report.as_dict()
    about = [_VERSION, discovery.dictionary.hash, list(discovery.dictionary.names), stable_hash(*_content_of(source))]
    if isinstance(source, GroundTruthSource):
        truthful = source
        metadata["quality"] = cached_values(
            store, "quality", about, lambda: score_parts(truthful, discovery.label_maps, discovery.codes).as_dict()
        )
        quality = PartQuality(**metadata["quality"])
        stages.log(
            f"  against the truth: foreground IoU {quality.foreground_iou:.3f}, part IoU {quality.mean_part_iou:.3f}, "
            f"codes against species NMI {quality.mean_nmi:.3f}"
        )
    if isinstance(source, AnnotatedSource):
        metadata["annotations"] = compare_annotations(source, discovery.label_maps, discovery.dictionary, stages)
    if not is_first_process():
        return metadata
    folder.mkdir(parents=True, exist_ok=True)
    discovery.dictionary.save(folder)
    atomic_write(folder / "discovery.json", json.dumps(metadata, indent=1) + "\n")
    write_codes(folder / CODES_FILE, source, discovery)
    if save_masks:
        write_masks(folder / "masks", source, discovery)
    with stages.stage("draw atlas"):
        _draw_atlas(source, discovery, folder, store, about)
    return metadata


def _draw_atlas(source: ImageSource, discovery: Discovery, folder: Path, store: Store, about: list[Any]) -> None:
    """All sheets; after a correction those of parts that it left alone come out of the store.

    Args:
        source, discovery, folder, store: as in ``write_discovery``.
        about: all that decides the sheets that show every part.
    """
    atlas = Atlas(source, discovery, lambda of, draw: cached_image(store, "atlas_part", [_VERSION, of], draw))
    sheets: dict[str, tuple[list[Any], Callable[[Path], Path]]] = {
        "atlas.png": (about, atlas.draw_overview),
        "masks.png": (about, atlas.draw_masks),
    }
    for name, (part, page) in atlas.pages().items():
        of_page = [_VERSION, *atlas.about_codes(part, page)]
        sheets[name] = (of_page, functools.partial(atlas.draw_codes, part=part, page=page))
    for name, (of_sheet, draw) in sheets.items():
        cached_file(store, "atlas", [*of_sheet, name], folder / name, functools.partial(draw, folder / name))


def write_codes(path: Path, source: ImageSource, discovery: Discovery) -> None:
    """A line per image: its name and the code of each part, empty where the part is not in sight."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(["image", *discovery.dictionary.names])
    for index, codes in enumerate(discovery.codes.tolist()):
        lines.writerow([source.name(index), *("" if code == ABSENT else code for code in codes)])
    atomic_write(path, text.getvalue())


def write_masks(folder: Path, source: ImageSource, discovery: Discovery) -> None:
    """The parts of every image as label images, with ``parts.txt``: what ``dataset.masks`` reads.

    Raises:
        UserError: if two images would have the same mask.
    """
    names = discovery.dictionary.names
    palette = part_colors(len(names)).flatten().tolist()
    first: dict[str, str] = {}
    for index in range(len(source)):
        name = source.name(index)
        stem = PurePosixPath(name).with_suffix(".png").as_posix()
        if stem in first:
            raise UserError(
                f"parts.save_masks: {first[stem]} and {name} would share the mask {stem}. Rename one of them."
            )
        first[stem] = name
        height, width = source.image(index).shape[1:]
        top, left, kept_height, kept_width = kept_window(height, width)
        labels = torch.zeros(height, width, dtype=torch.uint8)
        labels[top : top + kept_height, left : left + kept_width] = resize_labels(
            discovery.label_maps[index], (kept_height, kept_width), len(names), smooth=True
        )
        image = Image.fromarray(labels.numpy()).convert("P")
        image.putpalette(palette)
        content = io.BytesIO()
        image.save(content, "PNG")
        path = folder / stem
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, content.getvalue())
    atomic_write(folder / NAMES_FILE, "".join(f"{name}\n" for name in names[1:]))


def _content_of(source: ImageSource) -> list[Any]:
    """All that a sheet of the images shows, or a score of their parts depends on."""
    images = range(len(source))
    content, labels, names = ([ask(i) for i in images] for ask in (source.content_hash, source.label, source.name))
    return [type(source).__name__, content, labels, names, list(source.class_names)]


def compare_annotations(
    source: AnnotatedSource, label_maps: Sequence[Tensor], dictionary: PartDictionary, stages: Stages
) -> dict[str, Any]:
    """Scores parts against annotated boxes and keypoints, and logs the result."""
    annotations = [source.annotation(index) for index in range(len(label_maps))]
    quality = score_annotations(annotations, label_maps, dictionary.num_parts, source.keypoint_names)
    shown = f"box IoU {quality.box_iou:.3f} ({quality.box_found:.0%} above one half)"
    if source.keypoint_names:
        shown += (
            f", keypoints in the foreground {quality.keypoint_in_foreground:.3f}, in their part "
            f"{quality.keypoint_accuracy:.3f} (one to one {quality.keypoint_accuracy_paired:.3f}), "
            f"NMI {quality.keypoint_nmi:.3f}"
        )
    stages.log(f"  against the annotations: {shown}")
    for part, names in quality.holds.items():
        stages.log(f"    {dictionary.names[part]} holds: {', '.join(names)}")
    return quality.as_dict()


def write_rejected(source: ImageSource, folder: Path, stages: Stages) -> list[str]:
    """Lists unreadable images in ``rejected.csv``; returns notes for the report."""
    write = getattr(source, "write_rejected", None)
    if write is None or not source.rejected:  # type: ignore[attr-defined]
        return []
    path = folder / "rejected.csv"
    write(path)
    note = f"{len(source.rejected)} files could not be read; they are listed in {path.name}, and the run goes on."  # type: ignore[attr-defined]
    stages.log(note)
    return [note]
