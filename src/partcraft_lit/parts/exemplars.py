"""Images that show a part code best, and crops of the part in them."""

from __future__ import annotations

import torch
from torch import Tensor

from partcraft_lit.core.images import clamp_aspect
from partcraft_lit.core.types import BACKGROUND, ImageSource
from partcraft_lit.parts.discovery import Discovery
from partcraft_lit.parts.segmenter import connected_components


def nearest_images(discovery: Discovery, part: int, code: int) -> list[int]:
    """Indices of the images with this code, those nearest to its centroid first."""
    members = (discovery.codes[:, part] == code).nonzero()[:, 0]
    centroid = discovery.dictionary.code_centroids[part][code]
    features = discovery.part_features[members, part].float()
    nearness = torch.cosine_similarity(features, centroid[None], dim=1)
    chosen: list[int] = members[nearness.argsort(descending=True, stable=True)].tolist()
    return chosen


def crop_of_code(source: ImageSource, discovery: Discovery, part: int, code: int) -> Tensor | None:
    """The part in the image that shows the code best.

    Args:
        source: the images that ``discovery`` was made of.
        discovery: parts and codes.
        part: 0...M; of the background, the crop is the whole image.
        code: of the part.

    Returns:
        (3, height, width) uint8; None for a code that no image shows.
    """
    chosen = nearest_images(discovery, part, code)
    if not chosen:
        return None
    image = clamp_aspect(source.image(chosen[0]))
    if part == BACKGROUND:
        return image
    top, left, bottom, right = part_box(discovery.label_maps[chosen[0]], part, *image.shape[1:])
    return image[:, top:bottom, left:right]


def part_box(label_map: Tensor, part: int, height: int, width: int, margin: float = 0.2) -> tuple[int, int, int, int]:
    """A square of pixels around the largest component of one part, as far as the image allows.

    Args:
        label_map: (grid height, grid width), with the part in it.
        part: which.
        height, width: of the image in pixels.
        margin: added on each side, as a share of the part's longer side.

    Returns:
        top, left, bottom, right; inside the image, at least three cells wide.
    """
    components = torch.from_numpy(connected_components(label_map[None].numpy())[0])
    sizes = torch.bincount(components[label_map == part])  # specks elsewhere would make the crop show everything
    rows, columns = (components == sizes.argmax()).nonzero().unbind(dim=1)
    cell_height, cell_width = height / label_map.shape[0], width / label_map.shape[1]
    top, bottom = float(rows.min()) * cell_height, float(rows.max() + 1) * cell_height
    left, right = float(columns.min()) * cell_width, float(columns.max() + 1) * cell_width
    side = max(bottom - top, right - left) * (1 + 2 * margin)
    side = max(side, 3 * cell_height, 3 * cell_width)
    top, bottom = _place((top + bottom) / 2, side, height)
    left, right = _place((left + right) / 2, side, width)
    return round(top), round(left), round(bottom), round(right)


def _place(middle: float, side: float, limit: int) -> tuple[float, float]:
    side = min(side, limit)
    start = min(max(middle - side / 2, 0.0), limit - side)
    return start, start + side
