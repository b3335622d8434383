"""Image composition: part palettes, overlays, labels, grids, and PNGs with metadata.

Every image is a (3, height, width) uint8 tensor in RGB on the CPU; every function returns a new one. Overlays are drawn
at the size of the image they get: enlarge a small image first (:func:`upscale`) and its outlines stay thin.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.labels import resize_labels as resize_by_majority

Color = tuple[int, int, int]

WHITE: Color = (255, 255, 255)
INK: Color = (32, 36, 44)
BACKGROUND_GREY: Color = (128, 134, 145)

#: Okabe and Ito's colours (https://jfly.uni-koeln.de/color/), without black, ordered so that neighbours differ most and
#: the first five, which most dictionaries need, stay apart under all three kinds of colour blindness.
_OKABE_ITO: tuple[Color, ...] = (
    (230, 159, 0),
    (0, 114, 178),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (240, 228, 66),
)


def part_colors(n: int) -> Tensor:
    """One colour per part, for ``n`` parts counted with the background, which is part 0 and gets a neutral grey.

    Returns:
        (n, 3) uint8. The first eight rows are safe for colour-blind readers; more parts get further hues, which differ
        in brightness but can no longer all be told apart.

    Source: Okabe and Ito, "Color Universal Design", 2008.
    """
    if n < 1:
        raise ValueError(f"n counts the parts with the background, so it is at least 1; got {n}.")
    colors = [BACKGROUND_GREY, *_OKABE_ITO]
    while len(colors) < n:
        colors.append(_extra_color(len(colors)))
    return torch.tensor(colors[:n], dtype=torch.uint8)


def _extra_color(index: int) -> Color:
    """Hues at the golden angle, in three bands of brightness."""
    hue = int(index * 137.508) % 360
    lightness = (42, 62, 78)[index % 3]
    image = Image.new("RGB", (1, 1), f"hsl({hue}, 62%, {lightness}%)")
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return (int(pixel[0]), int(pixel[1]), int(pixel[2]))


def hex_color(color: Tensor | Sequence[int]) -> str:
    """``#rrggbb`` of one colour, for HTML."""
    red, green, blue = (int(value) for value in color)
    return f"#{red:02x}{green:02x}{blue:02x}"


def upscale(image: Tensor, side: int, mode: Literal["nearest", "lanczos"] = "lanczos") -> Tensor:
    """Resizes so that the longer side is ``side`` pixels; "nearest" keeps pixels visible, "lanczos" smooths them."""
    height, width = _checked(image).shape[1:]
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    resample = Image.Resampling.NEAREST if mode == "nearest" else Image.Resampling.LANCZOS
    return from_pil(to_pil(image).resize(size, resample))


def overlay_parts(
    image: Tensor,
    label_map: Tensor,
    colors: Tensor,
    opacity: float = 0.6,
    background_opacity: float = 0.0,
    outline: bool = True,
    smooth: bool = True,
    gray: bool = True,
) -> Tensor:
    """Tints every part with its colour and draws the boundaries between parts.

    Args:
        image: (3, height, width) uint8.
        label_map: (grid height, grid width) integers 0...M at any resolution; 0 is the background.
        colors: (M + 1, 3) uint8, see :func:`part_colors`.
        opacity: of the tint on the parts, 0...1; ``background_opacity`` of the one on the background.
        outline: white lines where two parts meet.
        smooth: interpolate the memberships of a coarse map instead of showing its cells as blocks. A coarse map is no
            more exact for it.
        gray: tint a grey version of the image, so that a part shows its own colour and not a mixture.

    Returns:
        (3, height, width) uint8.
    """
    labels = resize_labels(label_map, _checked(image).shape[1:], len(colors), smooth)
    alpha = torch.where(labels == 0, background_opacity, opacity)  # (height, width)
    base = torch.where(alpha > 0, _gray(image), image.float()) if gray else image.float()
    tinted = torch.lerp(base, colors[labels].permute(2, 0, 1).float(), alpha)
    if outline:
        line = _boundaries(labels, thickness=_line_width(image))
        tinted = torch.where(line, torch.lerp(tinted, torch.tensor(255.0), 0.85), tinted)
    return _to_bytes(tinted)


def highlight_part(
    image: Tensor, label_map: Tensor, parts: int | Sequence[int], colors: Tensor, dim: float = 0.72, smooth: bool = True
) -> Tensor:
    """Keeps the given part or parts as they are, outlined in their colour, and fades all the rest towards light grey.

    Args:
        image: (3, height, width) uint8.
        label_map: (grid height, grid width) integers 0...M.
        parts: which to keep.
        colors: (M + 1, 3) uint8.
        dim: how far the rest fades, 0 (not at all) ... 1 (blank).
        smooth: as in :func:`overlay_parts`.
    """
    labels = resize_labels(label_map, _checked(image).shape[1:], len(colors), smooth)
    kept = [parts] if isinstance(parts, int) else list(parts)
    faded = torch.lerp(_gray(image), torch.tensor(236.0), dim)
    result = torch.where(torch.isin(labels, torch.tensor(kept)), image.float(), faded)
    for part in kept:
        line = _boundaries(labels == part, thickness=max(2, 2 * _line_width(image)))
        result = torch.where(line, colors[part][:, None, None].float(), result)
    return _to_bytes(result)


def heat_overlay(image: Tensor, heat: Tensor, maximum: float | None = None, opacity: float = 0.9) -> Tensor:
    """Lays a heat map over an image in grey: dark where there is none, bright and dense where there is most.

    Args:
        image: (3, height, width) uint8.
        heat: (grid height, grid width), non-negative, any scale.
        maximum: the value shown brightest; the map's own maximum by default. Give it to make maps comparable.
        opacity: of the colours where the map is largest; half of that where it is 0, so that the image stays visible.
    """
    heat = heat.detach().float().nan_to_num(0.0)
    top = float(heat.max()) if maximum is None else maximum
    unit = (heat / max(top, 1e-12)).clamp(0, 1)
    unit = F.interpolate(unit[None, None], list(_checked(image).shape[1:]), mode="bicubic")[0, 0].clamp(0, 1)
    return _to_bytes(torch.lerp(_gray(image), _magma(unit), opacity * (1 + unit) / 2))


def label(
    image: Tensor,
    text: str,
    position: Literal["above", "below"] = "below",
    size: int = 13,
    color: Color = INK,
    background: Color = WHITE,
    align: Literal["left", "center"] = "left",
) -> Tensor:
    """Adds a strip with one line of text per line of ``text``; a line that is too long ends in dots.

    Returns:
        (3, height + strip, width) uint8; the strip is ``round(1.5 * size)`` per line.
    """
    width = _checked(image).shape[2]
    lines = text.split("\n")
    step = round(1.5 * size)
    canvas = Image.new("RGB", (width, step * len(lines)), background)
    draw = ImageDraw.Draw(canvas)
    font = _font(size)
    margin = 2 if align == "left" else 0
    for row, line in enumerate(lines):
        fitted = _fit(line, font, width - 2 * margin)
        x = margin if align == "left" else (width - font.getlength(fitted)) / 2
        draw.text((x, row * step + step / 2), fitted, fill=color, font=font, anchor="lm")
    strip = from_pil(canvas)
    return torch.cat([strip, image] if position == "above" else [image, strip], dim=1)


def wrapped(texts: Sequence[str], width: int, size: int = 13) -> list[str]:
    """Texts broken between words, for ``label`` under images of this width; all with the same number of lines."""
    font = _font(size)
    broken: list[list[str]] = []
    for text in texts:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if font.getlength(longer) <= width - 4:
                lines[-1] = longer
            else:
                lines.append(word)
        broken.append([line for line in lines if line] or [""])
    most = max(map(len, broken))
    return ["\n".join(lines + [""] * (most - len(lines))) for lines in broken]


def legend(names: Sequence[str], colors: Tensor, width: int, size: int = 13, background: Color = WHITE) -> Tensor:
    """A strip of colour swatches with names, broken into as many lines as ``width`` needs."""
    font, step, swatch = _font(size), round(1.7 * size), size
    places: list[tuple[float, int]] = []
    x, row = 0.0, 0
    for name in names:
        advance = swatch + 0.5 * size + font.getlength(name) + 1.2 * size
        if x and x + advance > width:
            x, row = 0.0, row + 1
        places.append((x, row))
        x += advance
    canvas = Image.new("RGB", (width, step * (row + 1)), background)
    draw = ImageDraw.Draw(canvas)
    for (left, line), name, color in zip(places, names, colors, strict=True):
        middle = line * step + step / 2
        box = (left, middle - swatch / 2, left + swatch, middle + swatch / 2)
        draw.rounded_rectangle(box, radius=swatch // 4, fill=hex_color(color))
        draw.text((left + 1.5 * size, middle), name, fill=INK, font=font, anchor="lm")
    return from_pil(canvas)


def grid(
    images: Tensor | Sequence[Tensor],
    columns: int | None = None,
    pad: int = 2,
    background: Color = WHITE,
    border: int = 0,
) -> Tensor:
    """Lays images out row by row.

    Args:
        images: (N, 3, H, W) or a sequence of (3, h, w) images of any sizes; each is centred in a cell as large as the
            largest, without scaling.
        columns: cells in a row; the nearest to a square by default.
        pad: pixels between cells.
        background: fills gaps.
        border: pixels around the whole.

    Returns:
        (3, height, width) uint8.
    """
    cells = [_checked(image) for image in images]
    if not cells:
        raise ValueError("A grid needs at least one image.")
    columns = min(columns or math.ceil(math.sqrt(len(cells))), len(cells))
    rows = math.ceil(len(cells) / columns)
    high, wide = (max(cell.shape[axis] for cell in cells) for axis in (1, 2))
    canvas = _blank(rows * (high + pad) - pad + 2 * border, columns * (wide + pad) - pad + 2 * border, background)
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        top = border + row * (high + pad) + (high - cell.shape[1]) // 2
        left = border + column * (wide + pad) + (wide - cell.shape[2]) // 2
        canvas[:, top : top + cell.shape[1], left : left + cell.shape[2]] = cell
    return canvas


def stack(images: Sequence[Tensor], pad: int = 8, background: Color = WHITE, border: int = 0) -> Tensor:
    """Images of any widths under one another, aligned left."""
    if not images:
        raise ValueError("A stack needs at least one image.")
    wide = max(_checked(image).shape[2] for image in images)
    high = sum(image.shape[1] for image in images) + pad * (len(images) - 1)
    canvas = _blank(high + 2 * border, wide + 2 * border, background)
    top = border
    for image in images:
        canvas[:, top : top + image.shape[1], border : border + image.shape[2]] = image
        top += image.shape[1] + pad
    return canvas


def fit_square(image: Tensor, side: int, background: Color = WHITE) -> Tensor:
    """The whole image inside a square of ``side`` pixels, centred, with bars where its aspect differs."""
    scaled = upscale(image, side)
    canvas = _blank(side, side, background)
    top, left = (side - scaled.shape[1]) // 2, (side - scaled.shape[2]) // 2
    canvas[:, top : top + scaled.shape[1], left : left + scaled.shape[2]] = scaled
    return canvas


def resize_labels(label_map: Tensor, size: Sequence[int], num_labels: int, smooth: bool = False) -> Tensor:
    """A label map at another resolution, as int64 (height, width): by majority, or by interpolated memberships.

    Both commute with mirroring.
    """
    labels = label_map.detach().cpu().long()
    if labels.ndim != 2:
        raise ValueError(f"label_map must be (height, width), got {tuple(labels.shape)}.")
    if labels.numel() == 0 or int(labels.max()) >= num_labels or int(labels.min()) < 0:
        found = sorted(set(labels.flatten().tolist()))
        raise ValueError(f"label_map must hold 0...{num_labels - 1}, one colour each; got {found}.")
    if tuple(labels.shape) == tuple(size):
        return labels
    if not smooth:
        return resize_by_majority(labels, size)
    members = F.one_hot(labels, num_labels).permute(2, 0, 1)[None].float()  # (1, labels, grid height, grid width)
    members = F.interpolate(members, list(size), mode="bilinear", align_corners=False)[0]
    # Rounded: the order of sums must not decide between equals. Along a strided axis argmax takes ten times as long.
    return (members * 2**12).round().max(dim=0).indices


def to_pil(image: Tensor) -> Image.Image:
    return Image.fromarray(_checked(image).detach().cpu().permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Image.Image) -> Tensor:
    data = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
    return data.view(image.height, image.width, 3).permute(2, 0, 1).contiguous()


def encode_png(image: Tensor, metadata: Mapping[str, object] | None = None) -> bytes:
    """PNG bytes; ``metadata`` becomes text chunks that any viewer shows (prompt, seed, step, ...)."""
    info = PngInfo()
    for key, value in (metadata or {}).items():
        info.add_itxt(key[:79], str(value))
    buffer = io.BytesIO()
    to_pil(image).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def encode_jpeg(image: Tensor, quality: int = 88) -> bytes:
    buffer = io.BytesIO()
    # No "optimize": Pillow then needs the whole file in one buffer, which it makes too small for noisy images.
    to_pil(image).save(buffer, format="JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def save_png(path: Path | str, image: Tensor, metadata: Mapping[str, object] | None = None) -> Path:
    """Writes a PNG atomically, making its folder; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, encode_png(image, metadata))
    return path


def _checked(image: Tensor) -> Tensor:
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"An image is (3, height, width) uint8, got {tuple(image.shape)} {image.dtype}.")
    return image


def _gray(image: Tensor) -> Tensor:
    """(3, height, width) float, all channels the mean."""
    return image.float().mean(dim=0, keepdim=True).expand_as(image)


def _to_bytes(image: Tensor) -> Tensor:
    return image.round().clamp(0, 255).to(torch.uint8)


def _blank(height: int, width: int, color: Color) -> Tensor:
    return torch.tensor(color, dtype=torch.uint8)[:, None, None].expand(3, height, width).clone()


def _line_width(image: Tensor) -> int:
    return max(1, round(max(image.shape[1:]) / 160))


def _boundaries(labels: Tensor, thickness: int) -> Tensor:
    """Pixels near which the label changes, in a band ``thickness`` pixels wide."""
    edge = torch.zeros(labels.shape, dtype=torch.bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:, :] |= labels[1:, :] != labels[:-1, :]
    if thickness == 1:
        return edge
    before = (thickness - 1) // 2
    padded = F.pad(edge[None, None].float(), (thickness - 1 - before, before, thickness - 1 - before, before))
    return F.max_pool2d(padded, thickness, stride=1)[0, 0] > 0


def _magma(unit: Tensor) -> Tensor:
    """(height, width) in 0...1 -> (3, height, width) colours in 0...255; brightness rises evenly, also in grey."""
    colors = matplotlib.colormaps["magma"](unit.numpy(), bytes=True)  # (height, width, 4)
    return torch.from_numpy(colors[..., :3].copy()).permute(2, 0, 1).float()


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."
