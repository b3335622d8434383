"""Parts annotated in the data set, as masks or as one concept per image class, in place of discovery."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.labels import resize_labels
from partcraft_lit.core.part_names import check_part_names
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.types import ABSENT, GroundTruthSource, ImageSource, PatchFeatures
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import Discovery, DiscoveryReport
from partcraft_lit.parts.kmeans import cluster_codes
from partcraft_lit.parts.segmentation import describe_parts
from partcraft_lit.parts.segmenter import Segmenter
from partcraft_lit.parts.settings import PartsSettings


def check_dataset_parts(source: ImageSource, settings: PartsSettings) -> None:
    """Checks that the data set has the parts of ``settings.source``, without loading a network.

    Raises:
        UserError: if it has no masks or classes, another number of them, or a mask of another size than its image.
    """
    names = _part_names(source, settings.source)
    if len(names) != settings.M:
        raise UserError(
            f"parts.M={settings.M}, but parts.source={settings.source} gives {len(names)}: {', '.join(names)}. Set "
            f"parts.M={len(names)}."
        )
    check_part_names(settings.names or names)
    for index in range(len(source)):
        _check_image(source, settings.source, index)


def dataset_parts(
    source: ImageSource,
    features: PatchFeatures,
    settings: PartsSettings,
    *,
    seed: int,
    progress: Callable[[str, int, int], None] | None = None,
) -> Discovery:
    """The data set's parts, with a dictionary that segments further images by nearest mean feature.

    Args:
        source: the images; masks are those of a :class:`partcraft_lit.core.types.GroundTruthSource`.
        features: describes their patches.
        settings: with ``source`` "masks" or "classes". Codes are clustered as in discovery; names are those of the data
            set if none are set.
        seed: of the k-means of codes.
        progress: called with stage, done and total.

    Returns:
        A discovery whose label maps are the masks, in their resolution.

    Raises:
        UserError: as ``check_dataset_parts``.
    """
    check_dataset_parts(source, settings)
    kind, names = settings.source, _part_names(source, settings.source)
    label_maps, described = [], []
    for index in range(len(source)):
        label_maps.append(label_map_of(source, kind, index))
        described.append(_describe(features([source.image(index)])[0], label_maps[-1], len(names) + 1))
        if progress is not None:
            progress("read masks", index + 1, len(source))
    part_features = torch.stack(described)  # (N, M + 1, D)
    present = torch.stack([torch.bincount(m.flatten().long(), minlength=len(names) + 1) > 0 for m in label_maps])
    codes = torch.full(present.shape, ABSENT, dtype=torch.long)
    tables = []
    for part in range(len(names) + 1):
        rows = present[:, part]
        table, labels = _codes(part_features[rows, part], settings, derive_seed(seed, "given", part))
        tables.append(table)
        codes[rows, part] = labels
    dictionary = PartDictionary(
        names=("background", *(settings.names or names)),
        segmenter=_segmenter(part_features, present),
        code_centroids=tuple(tables),
        features_id=features.id,
        features_hash=features.hash,
        metadata={"given": kind, "num_images": len(source)},
    )
    report = DiscoveryReport(
        num_images=len(source), num_patches=0, foreground={"confidence": 1.0}, notes=[f"Parts are given: {kind}."]
    )
    report.describe(describe_parts(dictionary, label_maps, codes, part_features), settings)
    report.notes += [f"No image shows {part['name']}." for part in report.parts[1:] if not part["images"]]
    return Discovery(dictionary, label_maps, codes, part_features, report)


def _part_names(source: ImageSource, kind: str) -> tuple[str, ...]:
    if kind == "classes":
        if len(source.class_names) < 1 or any(source.label(index) is None for index in range(len(source))):
            raise UserError(
                "parts.source=classes takes each class of images as one concept, and this data set has no classes: put "
                "the images of each concept into a folder of its own, named by its noun, such as cat/ and dog/."
            )
        return tuple(source.class_names)
    if not isinstance(source, GroundTruthSource):
        raise UserError(
            "parts.source=masks needs a data set with masks, and this one has none: take one that has, or "
            "parts.source=discover."
        )
    return tuple(source.part_names)


def _check_image(source: ImageSource, kind: str, index: int) -> None:
    if kind == "masks":
        mask, image = source.truth(index).label_map, source.image(index)  # type: ignore[attr-defined]
        if mask.shape != image.shape[1:]:
            raise UserError(
                f"The mask of {source.name(index)} is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{image.shape[2]} x {image.shape[1]}: make the mask as large as the image."
            )
        if int(mask.max()) > len(source.part_names):  # type: ignore[attr-defined]
            raise UserError(f"The mask of {source.name(index)} has the value {int(mask.max())}, and no part has it.")


def label_map_of(source: ImageSource, kind: str, index: int) -> Tensor:
    """(height, width) uint8, of what ``clamp_aspect`` leaves of the image; one cell where all of it is one concept."""
    if kind == "classes":
        return torch.full((1, 1), int(source.label(index) or 0) + 1, dtype=torch.uint8)
    return clamp_aspect(source.truth(index).label_map[None])[0].to(torch.uint8)  # type: ignore[attr-defined]


def _describe(grid: Tensor, label_map: Tensor, num_labels: int) -> Tensor:
    """(M + 1, D) mean direction of the cells of each part, zeros where it has none."""
    cells = resize_labels(label_map, grid.shape[:2]).long()
    directions = F.normalize(grid.float(), dim=-1).flatten(0, 1)
    member = F.one_hot(cells.flatten(), num_labels).float()  # (cells, M + 1)
    return (member.T @ directions) / member.sum(dim=0).clamp_min(1)[:, None]


def _codes(vectors: Tensor, settings: PartsSettings, seed: int) -> tuple[Tensor, Tensor]:
    """Centroids (K', D) and the code of each row; a part that no patch shows has one code, a row of zeros."""
    if settings.K == 1 or not bool((vectors.norm(dim=1) > 0.5).any()):
        return F.normalize(vectors.sum(dim=0, keepdim=True), dim=1), torch.zeros(len(vectors), dtype=torch.long)
    return cluster_codes(vectors, settings.K, nredo=settings.nredo, niter=settings.niter, seed=seed)


def _segmenter(part_features: Tensor, present: Tensor) -> Segmenter:
    """Nearest mean: each patch belongs to the part, or the background, that looks like it."""
    means = F.normalize((part_features * present[..., None]).sum(dim=0), dim=1)
    foreground = torch.ones(len(means), dtype=torch.bool)
    foreground[0] = False
    return Segmenter(torch.zeros(means.shape[1]), means, foreground, means[1:])
