"""The atlas: what discovery found, as images that a person can judge and name the parts from."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from partcraft_lit.core.images import clamp_aspect, resize
from partcraft_lit.core.store import stable_hash
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
from partcraft_lit.parts.exemplars import nearest_images, part_box
from partcraft_lit.parts.foreground import confidence_in_words

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
_COMMONEST_CROPS = 6
#: A page of codes: columns, crops of a code, sizes of the letters of its head and of a code, and its spacing.
_CODE_COLUMNS, _CODE_CROPS, _HEAD_SIZE, _CODE_SIZE, _BAR, _PAGE_PAD, _PAGE_BORDER = 3, 4, 20, 14, 4, 10, 20


#: Gives an image that was drawn before of the same plain values, else draws it: ``remember(about, draw)``.
Remember = Callable[[Any, Callable[[], Tensor]], Tensor]


class Atlas:
    """Draws what discovery found.

    What is drawn of a part depends on its own cells, names and codes, not on those of the others: after a correction
    most of the atlas is as it was.

    Args:
        source: the images that ``discovery`` was made of.
        discovery: parts and codes.
        remember: keeps what is drawn of each part, and each pair of masks, for an atlas of other corrections.
    """

    def __init__(
        self, source: ImageSource, discovery: Discovery, remember: Remember = lambda about, draw: draw()
    ) -> None:
        self._remember = remember
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
            draw = functools.partial(self._part_section, part, codes)
            sections.append(self._remember(["section", self._about_section(part, codes)], draw))
        return _save(path, "Part atlas", stack(sections, pad=22, border=20))

    def draw_codes(self, path: str | Path, part: int, page: int = 0) -> Path:
        """Writes one PNG with crops of every code of a part, by number; ``CODES_PER_PAGE`` codes on a page.

        Returns:
            The path.
        """
        codes, name = self._codes_of(part, page), self._dictionary.names[part]
        text = f"{part}  {name}: codes {codes[0]} to {codes[-1]} of {self._dictionary.num_codes(part)}"
        head = label(self._bar(part), text, size=_HEAD_SIZE)
        blocks = [self._code_block(part, code, crops=_CODE_CROPS) for code in codes]
        sheet = stack([head, _rows(blocks, _CODE_COLUMNS)], pad=_PAGE_PAD, border=_PAGE_BORDER)
        return _save(path, f"Codes of {name}", sheet)

    def about_codes(self, part: int, page: int = 0) -> list[Any]:
        """Plain values that decide what :meth:`draw_codes` draws."""
        blocks = [self._about_block(part, code, _CODE_CROPS) for code in self._codes_of(part, page)]
        return [self._about_part(part), page, self._dictionary.num_codes(part), blocks]

    def _codes_of(self, part: int, page: int) -> range:
        return range(page * CODES_PER_PAGE, min((page + 1) * CODES_PER_PAGE, self._dictionary.num_codes(part)))

    def draw_masks(self, path: str | Path, n: int = 24, columns: int = 4) -> Path:
        """Writes one PNG of ``n`` images, spread over the source, each beside its parts in colour.

        Returns:
            The path.
        """
        chosen = _spread(list(range(len(self._source))), n)
        pairs = [
            self._remember(["pair", self._about_pair(index)], functools.partial(self._pair, index)) for index in chosen
        ]
        sheet = grid(pairs, columns=columns, pad=12)
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
        title = label(self._bar(part), f"{part}  {self._discovery.report.parts[part]['name']}", size=20)
        if not self._discovery.report.parts[part]["images"]:
            return label(title, self._statistics(part), size=14)
        crops = [self._crop(index, part) for index in self._examples(part)]
        rows = [
            label(title, self._statistics(part), size=14, color=_MUTED),
            grid(crops, columns=_PART_CROPS, pad=_GAP),
        ]
        blocks = [self._code_block(part, code, crops=_COMMONEST_CROPS) for code in self._commonest(part, codes)]
        return stack([*rows, _rows(blocks, 2)], pad=10)

    def _about_section(self, part: int, codes: int) -> list[Any]:
        """What decides the section of a part."""
        crops = [self._about_crop(index, part) for index in self._examples(part)]
        blocks = [self._about_block(part, code, _COMMONEST_CROPS) for code in self._commonest(part, codes)]
        name = self._discovery.report.parts[part]["name"]
        return [self._about_part(part), name, self._statistics(part), crops, blocks]

    def _statistics(self, part: int) -> str:
        about = self._discovery.report.parts[part]
        if not about["images"]:
            return "No image shows this part: it has no mask, and its token learns nothing."
        number = len(self._discovery.codes)
        return (
            f"in {about['images']} of {number} images   {100 * about['share']:.1f} % of all cells   "
            f"{about['codes']} codes   cosine to own code {about['similarity']:.2f}"
        )

    def _examples(self, part: int) -> list[int]:
        """Images of the part, spread over all that show it."""
        return _spread((self._discovery.codes[:, part] != ABSENT).nonzero()[:, 0].tolist(), _PART_CROPS)

    def _commonest(self, part: int, most: int) -> list[int]:
        column = self._discovery.codes[:, part]
        counts = torch.bincount(column[column != ABSENT], minlength=self._dictionary.num_codes(part))
        return [code for code in counts.argsort(descending=True, stable=True)[:most].tolist() if counts[code]]

    def _code_block(self, part: int, code: int, crops: int) -> Tensor:
        """The token above crops of the images that are nearest to its centroid."""
        tiles = [self._crop(index, part) for index in self._nearest(part, code, crops)]
        tiles += [torch.full((3, _TILE, _TILE), 255, dtype=torch.uint8)] * (crops - len(tiles))
        text = self._code_text(part, code)
        return label(grid(tiles, columns=crops, pad=_GAP), text, position="above", size=_CODE_SIZE)

    def _about_block(self, part: int, code: int, crops: int) -> list[Any]:
        chosen = self._nearest(part, code, crops)
        return [self._code_text(part, code), [self._about_crop(index, part) for index in chosen]]

    def _nearest(self, part: int, code: int, most: int) -> list[int]:
        """Images of a code, the nearest to its centroid first."""
        return nearest_images(self._discovery, part, code)[:most]

    def _code_text(self, part: int, code: int) -> str:
        members = int((self._discovery.codes[:, part] == code).sum())
        count = "1 image" if members == 1 else f"{members} images"
        return f"<{self._dictionary.names[part]}:{code}>{self._class_name(part, code)}   {count}"

    def _about_part(self, part: int) -> list[Any]:
        return [part, self._dictionary.names[part], self._colors[part].tolist()]

    def _class_name(self, part: int, code: int) -> str:
        names = self._dictionary.class_names
        return f" {names[code]}" if names is not None and part > 0 else ""

    def _bar(self, part: int) -> Tensor:
        return self._colors[part][:, None, None].expand(3, _BAR, _WIDTH).contiguous()

    def _crop(self, index: int, part: int) -> Tensor:
        """The part in a square tile, the rest faded."""
        image, cells = self._canvas(index), self._cells(index, part)
        labels, colors = resize_labels(cells, image.shape[1:], 2, smooth=True), self._colors[[0, part]]
        if part == 0:  # it is everywhere: fading the object shows where it ends
            return fit_square(highlight_part(image, labels, 1, colors), _TILE)
        height, width = image.shape[1:]
        top, left, bottom, right = part_box(cells, 1, height, width)
        window = (slice(top, bottom), slice(left, right))
        return fit_square(highlight_part(image[:, *window], labels[window], 1, colors), _TILE)

    def _about_crop(self, index: int, part: int) -> str:
        return stable_hash(self._source.content_hash(index), _as_values(self._cells(index, part)))

    def _cells(self, index: int, part: int) -> Tensor:
        """1 where a label map has the part, else 0."""
        return (self._discovery.label_maps[index] == part).long()

    def _pair(self, index: int) -> Tensor:
        image, labels = self._canvas(index), self._discovery.label_maps[index]
        tinted = overlay_parts(image, labels, self._colors)
        pair = grid([fit_square(image, 160), fit_square(tinted, 160)], columns=2, pad=2)
        return label(pair, self._short_name(index), size=12, color=_MUTED)

    def _about_pair(self, index: int) -> list[Any]:
        labels = _as_values(self._discovery.label_maps[index])
        return [self._source.content_hash(index), self._short_name(index), labels, self._colors.tolist()]

    def _short_name(self, index: int) -> str:
        return "/".join(Path(self._source.name(index)).parts[-2:])  # with its folder, which often is the class

    def _read(self, index: int) -> Tensor:
        """What a label map covers of its image, at drawing size; photographs are averaged down first."""
        image = clamp_aspect(self._source.image(index))
        height, width = image.shape[1:]
        if max(height, width) > 2 * _CANVAS:
            scale = _CANVAS / max(height, width)
            return resize(image, (max(round(height * scale), 1), max(round(width * scale), 1)))
        return upscale(image, _CANVAS)


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


def _as_values(cells: Tensor) -> list[Any]:
    return [list(cells.shape), cells.to(torch.uint8).numpy().tobytes().hex()]


def _rows(blocks: Sequence[Tensor], columns: int) -> Tensor:
    """Code blocks row by row, a label nearer to its own crops than to those above or beside."""
    return grid(blocks, columns=columns, pad=_CODE_GAP)


def _save(path: str | Path, title: str, image: Tensor) -> Path:
    return save_png(path, image, {"Software": "partcraft-lit", "Title": title})


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most ``most`` items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[position * len(items) // most] for position in range(most)]
