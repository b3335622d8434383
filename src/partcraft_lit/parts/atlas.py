"""The atlas: what discovery found, as pictures that a person can judge and name the parts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from partcraft_lit.core.images import clamp_aspect, resize
from partcraft_lit.core.types import ABSENT, ImageSource
from partcraft_lit.core.visualization import (
    Color,
    fit_square,
    grid,
    highlight_part,
    label,
    legend,
    overlay_parts,
    part_colors,
    save_png,
    stack,
    upscale,
)
from partcraft_lit.parts.discovery import Discovery
from partcraft_lit.parts.segmenter import connected_pieces

_TILE = 104
_PART_CROPS = 12
_CODE_CROPS = 6
_CODES = 4
_GAP = 4
_WIDTH = _PART_CROPS * (_TILE + _GAP) - _GAP
_MUTED: Color = (102, 108, 120)
#: Images are drawn on at this size, so that outlines of small pictures stay thin.
_CANVAS = 224


def draw_atlas(source: ImageSource, discovery: Discovery, path: str | Path, codes: int = _CODES) -> Path:
    """Writes one PNG: for every part its crops and numbers, and crops of its commonest codes.

    Args:
        source: the images that ``discovery`` was made of.
        discovery: what was found.
        path: of the PNG.
        codes: codes shown per part, the commonest first.

    Returns:
        The path.
    """
    dictionary = discovery.dictionary
    colors = part_colors(dictionary.num_parts + 1)
    sections = [_header(discovery, colors)]
    for part in [*range(1, dictionary.num_parts + 1), 0]:  # the background last: it interests least
        sections.append(_part_section(source, discovery, part, colors, codes))
    return save_png(path, stack(sections, pad=22, border=20), {"Software": "partcraft-lit", "Title": "Part atlas"})


def draw_masks(source: ImageSource, discovery: Discovery, path: str | Path, n: int = 24, columns: int = 4) -> Path:
    """Writes one PNG of ``n`` images, spread over the source, each beside its parts in colour.

    Returns:
        The path.
    """
    colors = part_colors(discovery.dictionary.num_parts + 1)
    chosen = _spread(list(range(len(source))), n)
    pairs = [_pair(source, discovery, index, colors) for index in chosen]
    sheet = grid(pairs, columns=columns, pad=12)
    names = legend(discovery.dictionary.names, colors, max(sheet.shape[2], 320), size=16)
    return save_png(
        path, stack([names, sheet], pad=14, border=20), {"Software": "partcraft-lit", "Title": "Part masks"}
    )


def part_box(label_map: Tensor, part: int, height: int, width: int, margin: float = 0.2) -> tuple[int, int, int, int]:
    """A square of pixels around the largest piece of one part, as far as the image allows.

    Args:
        label_map: (grid height, grid width), with the part in it.
        part: which.
        height, width: of the image in pixels.
        margin: added on each side, as a share of the part's longer side.

    Returns:
        top, left, bottom, right; inside the image, at least three cells wide.
    """
    pieces = connected_pieces(label_map)
    sizes = torch.bincount(pieces[label_map == part])  # specks elsewhere would make the crop show everything
    rows, columns = (pieces == sizes.argmax()).nonzero().unbind(dim=1)
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


def _header(discovery: Discovery, colors: Tensor) -> Tensor:
    report, dictionary = discovery.report, discovery.dictionary
    text = (
        f"{dictionary.num_parts} parts and the background in {report.num_images} images   "
        f"features {dictionary.features_id}   foreground confidence {report.foreground['confidence']:.2f}"
    )
    blank = torch.full((3, 1, _WIDTH), 255, dtype=torch.uint8)
    lines = [label(blank, "Part atlas", size=26), label(blank, text, size=15, color=_MUTED)]
    return stack([*lines, legend(dictionary.names, colors, _WIDTH, size=15)], pad=6)


def _part_section(source: ImageSource, discovery: Discovery, part: int, colors: Tensor, codes: int) -> Tensor:
    facts = discovery.report.parts[part]
    color = colors[part].tolist()
    bar = torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, 4, _WIDTH).contiguous()
    title = label(bar, f"{part}  {facts['name']}", size=20)
    numbers = (
        f"in {facts['images']} of {len(discovery.codes)} images   {100 * facts['share']:.1f} % of all cells   "
        f"{facts['codes']} codes   cosine to own code {facts['similarity']:.2f}"
    )
    head = label(title, numbers, size=14, color=_MUTED)
    shown = _spread((discovery.codes[:, part] != ABSENT).nonzero()[:, 0].tolist(), _PART_CROPS)
    crops = [_crop(source, discovery, index, part, colors) for index in shown]
    rows = [head, grid(crops, columns=_PART_CROPS, pad=_GAP)]
    blocks = _code_blocks(source, discovery, part, colors, codes)
    if blocks:
        rows.append(grid(blocks, columns=2, pad=_GAP))
    return stack(rows, pad=8)


def _code_blocks(source: ImageSource, discovery: Discovery, part: int, colors: Tensor, most: int) -> list[Tensor]:
    """One block per common code: its images nearest to the centroid."""
    column = discovery.codes[:, part]
    counts = torch.bincount(column[column != ABSENT], minlength=discovery.dictionary.num_codes(part))
    blocks = []
    for code in counts.argsort(descending=True, stable=True)[:most].tolist():
        if counts[code] == 0:
            break
        members = (column == code).nonzero()[:, 0]
        centroid = discovery.dictionary.code_centroids[part][code]
        nearness = torch.cosine_similarity(discovery.part_features[members, part].float(), centroid[None], dim=1)
        chosen = members[nearness.argsort(descending=True, stable=True)][:_CODE_CROPS].tolist()
        tiles = [
            _crop(
                source,
                discovery,
                index,
                part,
                colors,
            )
            for index in chosen
        ]
        tiles += [torch.full((3, _TILE, _TILE), 255, dtype=torch.uint8)] * (_CODE_CROPS - len(tiles))
        strip = grid(tiles, columns=_CODE_CROPS, pad=_GAP)
        token = f"<{discovery.dictionary.names[part]}:{code}>{_class_name(discovery, part, code)}"
        text = f"{token}   {int(counts[code])} images"
        blocks.append(label(strip, text, position="above", size=13))
    return blocks


def _class_name(discovery: Discovery, part: int, code: int) -> str:
    names = discovery.dictionary.class_names
    return f" {names[code]}" if names is not None and part > 0 else ""


def _crop(
    source: ImageSource, discovery: Discovery, index: int, part: int, colors: Tensor, side: int = _TILE
) -> Tensor:
    """The part in a square tile, the rest faded."""
    image, label_map = _canvas(source, index), discovery.label_maps[index]
    # The background is everywhere: a crop around it would be the image, and fading the object shows where it ends.
    picture = highlight_part(image, label_map, part, colors)
    if part == 0:
        return fit_square(picture, side)
    top, left, bottom, right = part_box(label_map, part, image.shape[1], image.shape[2])
    return fit_square(picture[:, top:bottom, left:right], side)


def _pair(source: ImageSource, discovery: Discovery, index: int, colors: Tensor) -> Tensor:
    image = _canvas(source, index)
    tinted = overlay_parts(image, discovery.label_maps[index], colors)
    pair = grid([fit_square(image, 160), fit_square(tinted, 160)], columns=2, pad=2)
    name = "/".join(Path(source.name(index)).parts[-2:])  # with its folder, which often is the class
    return label(pair, name, size=12, color=_MUTED)


def _canvas(source: ImageSource, index: int) -> Tensor:
    """The part of the image that its label map covers, at drawing size; large photographs are averaged down first."""
    image = clamp_aspect(source.image(index))
    height, width = image.shape[1:]
    if max(height, width) > 2 * _CANVAS:
        scale = _CANVAS / max(height, width)
        return resize(image, (max(round(height * scale), 1), max(round(width * scale), 1)))
    return upscale(image, _CANVAS)


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most ``most`` items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[position * len(items) // most] for position in range(most)]
