"""The atlas: what discovery found, as images that a person can judge and name the parts from."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
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
    resize_labels,
    save_png,
    stack,
    upscale,
)
from partcraft_lit.parts.discovery import Discovery
from partcraft_lit.parts.foreground import confidence_in_words
from partcraft_lit.parts.segmenter import connected_components

_TILE = 104
_PART_CROPS = 12
_GAP = 4
#: Between rows of codes and between neighbours in a row, so that a label is nearest to its own crops.
_CODE_GAP = 20
_WIDTH = _PART_CROPS * (_TILE + _GAP) - _GAP
_MUTED: Color = (102, 108, 120)
#: Images are drawn on at this size, so that outlines of small images stay thin.
_CANVAS = 224
#: Images that are kept at this size: large photographs take longer to decode than to draw on.
_KEPT_IMAGES = 512
#: Codes on the overview, and on each page of all codes.
_COMMONEST_CODES, CODES_PER_PAGE = 4, 48
#: A page of codes: columns, crops of a code, sizes of the letters of its head and of a code, and its spacing.
_CODE_COLUMNS, _CODE_CROPS, _HEAD_SIZE, _CODE_SIZE, _BAR, _PAGE_PAD, _PAGE_BORDER = 3, 4, 20, 14, 4, 10, 20


class Atlas:
    """Draws what discovery found.

    Args:
        source: the images that ``discovery`` was made of.
        discovery: parts and codes.
    """

    def __init__(self, source: ImageSource, discovery: Discovery) -> None:
        self._source = source
        self._discovery = discovery
        self._dictionary = discovery.dictionary
        self._colors = part_colors(discovery.dictionary.num_parts + 1)
        self._canvas = functools.lru_cache(_KEPT_IMAGES)(self._read)

    def pages(self) -> dict[str, tuple[int, int]]:
        """File name -> part and number of each page of :meth:`draw_codes`."""
        return {
            page_name(part, page, number): (part, page)
            for part, number in enumerate(self._dictionary.codes_per_part)
            for page in range(math.ceil(number / CODES_PER_PAGE))
        }

    def draw_overview(self, path: str | Path, codes: int = _COMMONEST_CODES) -> Path:
        """Writes one PNG: for every part its crops and statistics, and crops of its commonest ``codes``.

        Returns:
            The path.
        """
        sections = [self._header()]
        for part in [*range(1, self._dictionary.num_parts + 1), 0]:  # the background last: it interests least
            if part in self._dictionary.retired:
                continue
            sections.append(self._part_section(part, codes))
        return _save(path, "Part atlas", stack(sections, pad=22, border=20))

    def draw_codes(self, path: str | Path, part: int, page: int = 0) -> Path:
        """Writes one PNG with crops of every code of a part, by number; ``CODES_PER_PAGE`` codes on a page.

        Returns:
            The path.
        """
        number = self._dictionary.num_codes(part)
        first, end = page * CODES_PER_PAGE, min((page + 1) * CODES_PER_PAGE, number)
        name = self._dictionary.names[part]
        head = label(self._bar(part), f"{part}  {name}: codes {first} to {end - 1} of {number}", size=_HEAD_SIZE)
        blocks = [self._code_block(part, code, crops=_CODE_CROPS) for code in range(first, end)]
        sheet = stack([head, _rows(blocks, _CODE_COLUMNS)], pad=_PAGE_PAD, border=_PAGE_BORDER)
        return _save(path, f"Codes of {name}", sheet)

    def draw_masks(self, path: str | Path, n: int = 24, columns: int = 4) -> Path:
        """Writes one PNG of ``n`` images, spread over the source, each beside its parts in colour.

        Returns:
            The path.
        """
        chosen = _spread(list(range(len(self._source))), n)
        sheet = grid([self._pair(index) for index in chosen], columns=columns, pad=12)
        names = legend(self._dictionary.names, self._colors, max(sheet.shape[2], 320), size=16)
        return _save(path, "Part masks", stack([names, sheet], pad=14, border=20))

    def _header(self) -> Tensor:
        report, dictionary = self._discovery.report, self._dictionary
        live = [part for part in range(dictionary.num_parts + 1) if part not in dictionary.retired]
        text = (
            f"{len(live) - 1} parts and the background in {report.num_images} images   "
            f"features {dictionary.features_id}   {confidence_in_words(report.foreground['confidence'])}"
        )
        blank = torch.full((3, 1, _WIDTH), 255, dtype=torch.uint8)
        lines = [label(blank, "Part atlas", size=26), label(blank, text, size=15, color=_MUTED)]
        names = [dictionary.names[part] for part in live]
        return stack([*lines, legend(names, self._colors[live], _WIDTH, size=15)], pad=6)

    def _part_section(self, part: int, codes: int) -> Tensor:
        about = self._discovery.report.parts[part]
        column = self._discovery.codes[:, part]
        title = label(self._bar(part), f"{part}  {about['name']}", size=20)
        if not about["images"]:
            return label(title, "No image shows this part: it has no mask, and its token learns nothing.", size=14)
        text = (
            f"in {about['images']} of {len(column)} images   {100 * about['share']:.1f} % of all cells   "
            f"{about['codes']} codes   cosine to own code {about['similarity']:.2f}"
        )
        shown = _spread((column != ABSENT).nonzero()[:, 0].tolist(), _PART_CROPS)
        crops = [self._crop(index, part) for index in shown]
        rows = [label(title, text, size=14, color=_MUTED), grid(crops, columns=_PART_CROPS, pad=_GAP)]
        counts = torch.bincount(column[column != ABSENT], minlength=self._dictionary.num_codes(part))
        common = [code for code in counts.argsort(descending=True, stable=True)[:codes].tolist() if counts[code]]
        return stack([*rows, _rows([self._code_block(part, code, crops=6) for code in common], 2)], pad=10)

    def _code_block(self, part: int, code: int, crops: int) -> Tensor:
        """The token above crops of the images that are nearest to its centroid."""
        members = (self._discovery.codes[:, part] == code).nonzero()[:, 0]
        centroid = self._dictionary.code_centroids[part][code]
        features = self._discovery.part_features[members, part].float()
        nearness = torch.cosine_similarity(features, centroid[None], dim=1)
        chosen = members[nearness.argsort(descending=True, stable=True)][:crops].tolist()
        tiles = [self._crop(index, part) for index in chosen]
        tiles += [torch.full((3, _TILE, _TILE), 255, dtype=torch.uint8)] * (crops - len(tiles))
        count = "1 image" if len(members) == 1 else f"{len(members)} images"
        text = f"<{self._dictionary.names[part]}:{code}>{self._class_name(part, code)}   {count}"
        return label(grid(tiles, columns=crops, pad=_GAP), text, position="above", size=_CODE_SIZE)

    def _class_name(self, part: int, code: int) -> str:
        names = self._dictionary.class_names
        return f" {names[code]}" if names is not None and part > 0 else ""

    def _bar(self, part: int) -> Tensor:
        return self._colors[part][:, None, None].expand(3, _BAR, _WIDTH).contiguous()

    def _crop(self, index: int, part: int) -> Tensor:
        """The part in a square tile, the rest faded."""
        image, labels = self._canvas(index)
        if part == 0:  # it is everywhere: fading the object shows where it ends
            return fit_square(highlight_part(image, labels, part, self._colors), _TILE)
        height, width = image.shape[1:]
        top, left, bottom, right = part_box(self._discovery.label_maps[index], part, height, width)
        window = (slice(top, bottom), slice(left, right))
        return fit_square(highlight_part(image[:, *window], labels[window], part, self._colors), _TILE)

    def _pair(self, index: int) -> Tensor:
        image, labels = self._canvas(index)
        tinted = overlay_parts(image, labels, self._colors)
        pair = grid([fit_square(image, 160), fit_square(tinted, 160)], columns=2, pad=2)
        name = "/".join(Path(self._source.name(index)).parts[-2:])  # with its folder, which often is the class
        return label(pair, name, size=12, color=_MUTED)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """What a label map covers of its image, at drawing size, with labels; photographs are averaged down first."""
        image = clamp_aspect(self._source.image(index))
        height, width = image.shape[1:]
        if max(height, width) > 2 * _CANVAS:
            scale = _CANVAS / max(height, width)
            image = resize(image, (max(round(height * scale), 1), max(round(width * scale), 1)))
        else:
            image = upscale(image, _CANVAS)
        labels = resize_labels(self._discovery.label_maps[index], image.shape[1:], len(self._colors), smooth=True)
        return image, labels.to(torch.uint8)


def page_name(part: int, page: int, num_codes: int) -> str:
    """File name of a page of the codes of a part that has ``num_codes``."""
    return f"atlas_part{part}{f'_page{page + 1}' if num_codes > CODES_PER_PAGE else ''}.png"


def read_code_tile(folder: Path, part: int, code: int, num_codes: int) -> Image.Image | None:
    """The first crop of a code, that of the image nearest to its centroid, cut out of a page of :class:`Atlas`.

    Args:
        folder: where the pages are.
        part, code: which.
        num_codes: of the part.

    Returns:
        None if there is no such page, or no crop on it.
    """
    page, place = divmod(code, CODES_PER_PAGE)
    row, column = divmod(place, _CODE_COLUMNS)
    # As draw_codes lays it out: a line of text is one and a half times as high as its letters.
    line, head = round(1.5 * _CODE_SIZE), _BAR + round(1.5 * _HEAD_SIZE)
    left = _PAGE_BORDER + column * (_CODE_CROPS * (_TILE + _GAP) - _GAP + _CODE_GAP)
    top = _PAGE_BORDER + head + _PAGE_PAD + row * (line + _TILE + _CODE_GAP) + line
    try:
        with Image.open(folder / page_name(part, page, num_codes), formats=["PNG"]) as sheet:
            if left + _TILE > sheet.width or top + _TILE > sheet.height:
                return None
            tile = sheet.convert("RGB").crop((left, top, left + _TILE, top + _TILE))
    except OSError:
        return None
    return None if tile.convert("L").getextrema() == (255, 255) else tile


def _rows(blocks: Sequence[Tensor], columns: int) -> Tensor:
    """Code blocks row by row, a label nearer to its own crops than to those above or beside."""
    return grid(blocks, columns=columns, pad=_CODE_GAP)


def _save(path: str | Path, title: str, image: Tensor) -> Path:
    return save_png(path, image, {"Software": "partcraft-lit", "Title": title})


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


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most ``most`` items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[position * len(items) // most] for position in range(most)]
