"""Parts that a data set brings along, as masks or as one concept per class of images: nothing is discovered then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.types import ABSENT, ImageSource, PatchFeatures, TruthfulSource
from partcraft_lit.parts.dictionary import PartDictionary, check_names
from partcraft_lit.parts.discovery import Discovery, DiscoveryReport
from partcraft_lit.parts.kmeans import cosine_kmeans
from partcraft_lit.parts.labelling import describe_parts
from partcraft_lit.parts.segmenter import Segmenter

#: Where parts come from, if not from discovery: "masks", one for each part of each image, or the "classes" of images,
#: each of which shows one concept.
GivenParts = Literal["masks", "classes"]


def check_given(source: ImageSource, given: GivenParts, num_parts: int, names: Sequence[str]) -> None:
    """Looks whether a data set has what is asked of it, without a network.

    Raises:
        UserError: if it has no masks or classes, another number of them, or a mask of another size than its image.
    """
    known = _known_names(source, given)
    if len(known) != num_parts:
        raise UserError(
            f"parts.M={num_parts}, but parts.source={given} gives {len(known)}: {', '.join(known)}. Set "
            f"parts.M={len(known)}."
        )
    if names and len(names) != num_parts:
        raise UserError(f"parts.names has {len(names)} names for parts.M={num_parts} parts; give one each, or none.")
    check_names(names or known)
    for index in range(len(source)):
        _check_image(source, given, index)


def given_parts(
    source: ImageSource,
    features: PatchFeatures,
    *,
    given: GivenParts,
    num_codes: int,
    names: Sequence[str] = (),
    seed: int = 0,
    nredo: int = 5,
    niter: int = 30,
    progress: Callable[[str, int, int], None] | None = None,
) -> Discovery:
    """Parts as the data set knows them, with a dictionary that reads further images by what those parts look like.

    Args:
        source: the images; masks are those of a :class:`partcraft_lit.core.types.TruthfulSource`.
        features: describes their patches.
        given: where the parts come from.
        num_codes: K; the variants of a part are clustered as in discovery. A class has one code.
        names: of the parts; those of the data set if empty.
        seed, nredo, niter: of the k-means of codes.
        progress: told how far it is.

    Returns:
        A discovery whose label maps are the masks, as fine as they are.

    Raises:
        UserError: as ``check_given``.
    """
    known = _known_names(source, given)
    check_given(source, given, len(known), names)
    label_maps, described = [], []
    for index in range(len(source)):
        label_maps.append(_label_map(source, given, index))
        described.append(_describe(features([source.image(index)])[0], label_maps[-1], len(known) + 1))
        if progress is not None:
            progress("read masks", index + 1, len(source))
    part_features = torch.stack(described)  # (N, M + 1, D)
    present = torch.stack([torch.bincount(m.flatten().long(), minlength=len(known) + 1) > 0 for m in label_maps])
    codes = torch.full(present.shape, ABSENT, dtype=torch.long)
    tables = []
    for part in range(len(known) + 1):
        rows = present[:, part]
        table, labels = _codes(part_features[rows, part], num_codes, nredo, niter, derive_seed(seed, "given", part))
        tables.append(table)
        codes[rows, part] = labels
    dictionary = PartDictionary(
        names=("background", *(names or known)),
        segmenter=_segmenter(part_features, present),
        code_centroids=tuple(tables),
        features_id=features.id,
        features_hash=features.hash,
        facts={"given": given, "num_images": len(source)},
    )
    report = DiscoveryReport(
        num_images=len(source), num_patches=0, foreground={"confidence": 1.0}, notes=[f"Parts are given: {given}."]
    )
    report.parts = describe_parts(dictionary, label_maps, codes, part_features)
    return Discovery(dictionary, label_maps, codes, part_features, report)


def _known_names(source: ImageSource, given: GivenParts) -> tuple[str, ...]:
    if given == "classes":
        if len(source.class_names) < 1 or any(source.label(index) is None for index in range(len(source))):
            raise UserError(
                "parts.source=classes takes each class of images as one concept, and this data set has no classes: put "
                "the images of each concept into a folder of its own, named by its noun, such as cat/ and dog/."
            )
        return tuple(source.class_names)
    if not isinstance(source, TruthfulSource):
        raise UserError(
            "parts.source=masks needs a data set with masks, and this one has none: take one that has, or "
            "parts.source=discover."
        )
    return tuple(source.part_names)


def _check_image(source: ImageSource, given: GivenParts, index: int) -> None:
    if given == "masks":
        mask, image = source.truth(index).label_map, source.image(index)  # type: ignore[attr-defined]
        if mask.shape != image.shape[1:]:
            raise UserError(
                f"The mask of {source.name(index)} is {mask.shape[1]} x {mask.shape[0]} pixels, its image "
                f"{image.shape[2]} x {image.shape[1]}: make the mask as large as the image."
            )
        if int(mask.max()) > len(source.part_names):  # type: ignore[attr-defined]
            raise UserError(f"The mask of {source.name(index)} has the value {int(mask.max())}, and no part has it.")


def _label_map(source: ImageSource, given: GivenParts, index: int) -> Tensor:
    """(height, width) uint8, of what ``clamp_aspect`` leaves of the image; one cell where all of it is one concept."""
    if given == "classes":
        return torch.full((1, 1), int(source.label(index) or 0) + 1, dtype=torch.uint8)
    return clamp_aspect(source.truth(index).label_map[None])[0].to(torch.uint8)  # type: ignore[attr-defined]


def _describe(grid: Tensor, label_map: Tensor, num_labels: int) -> Tensor:
    """(M + 1, D) mean direction of the cells of each part, zeros where it has none."""
    cells = F.interpolate(label_map[None, None].float(), grid.shape[:2], mode="nearest-exact")[0, 0].long()
    directions = F.normalize(grid.float(), dim=-1).flatten(0, 1)
    member = F.one_hot(cells.flatten(), num_labels).float()  # (cells, M + 1)
    return (member.T @ directions) / member.sum(dim=0).clamp_min(1)[:, None]


def _codes(vectors: Tensor, num_codes: int, nredo: int, niter: int, seed: int) -> tuple[Tensor, Tensor]:
    """Table (K', D) and the code of each row; a part that no patch shows has the one code of a row of zeros."""
    if num_codes == 1 or not bool((vectors.norm(dim=1) > 0.5).any()):
        return F.normalize(vectors.sum(dim=0, keepdim=True), dim=1), torch.zeros(len(vectors), dtype=torch.long)
    return cosine_kmeans(vectors, num_codes, nredo=nredo, niter=niter, seed=seed)


def _segmenter(part_features: Tensor, present: Tensor) -> Segmenter:
    """Nearest mean: each patch belongs to the part, or the background, that looks like it."""
    means = F.normalize((part_features * present[..., None]).sum(dim=0), dim=1)
    foreground = torch.ones(len(means), dtype=torch.bool)
    foreground[0] = False
    return Segmenter(torch.zeros(means.shape[1]), means, foreground, means[1:])
