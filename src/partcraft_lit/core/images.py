"""From an image file to pixels, and from pixels to the sizes and ranges that networks want.

Everything here is Pillow and torch, so that results depend on no further library.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageFile, ImageOps
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError

#: Raise by one when the same file would give other pixels or another verdict than before: what is stored depends on it.
READER_VERSION = 1
#: Shortest side that is still a picture.
MIN_SIDE = 8
#: Longest over shortest side that is kept; the rest of a longer picture is cut off at both ends.
MAX_ASPECT = 3.0

#: Formats that are never opened. EPS starts an external program on the file; the others are registered by Pillow
#: without a decoder of its own, so that a film or a data file would count as a broken image.
_NEVER_OPENED = frozenset({"EPS", "MPEG", "HDF5", "GRIB", "BUFR"})


class UnreadableImage(UserError):
    """A file that does not become pixels.

    Attributes:
        reason: why, in a few words, without the path.
    """

    def __init__(self, reason: str, path: str | Path | None = None) -> None:
        super().__init__(f"{path} cannot be used as an image: {reason}." if path is not None else reason)
        self.reason = reason


@dataclass(frozen=True)
class DecodedImage:
    """A file's pixels.

    Attributes:
        pixels: (3, height, width) uint8 RGB.
        notes: what was changed on the way and a person may want to know, for instance "first of 12 frames".
    """

    pixels: Tensor
    notes: tuple[str, ...] = ()


def readable_extensions() -> frozenset[str]:
    """Lower-case file name endings, with the dot, of the formats that `read_image` opens."""
    formats = set(_readable_formats())
    # MPO files are opened by the JPEG reader, so the format is not among those that open.
    return frozenset(
        extension.lower()
        for extension, name in Image.registered_extensions().items()
        if name in formats or (name == "MPO" and "JPEG" in formats)
    )


def read_image(file: str | Path | BinaryIO) -> Tensor:
    """Reads an image in any format that Pillow decodes.

    Orientation is applied, transparency is composited on white, palettes and CMYK become RGB, 16 bits are scaled to 8,
    and of an animation the first frame is taken; see `decode_image` for the words about it.

    Returns:
        (3, height, width) uint8 RGB.

    Raises:
        UnreadableImage: if the file is missing, truncated, corrupt, no image, smaller than 8 pixels on a side, or so
            large that decoding it could exhaust memory.
    """
    with decoding_rules():
        return decode_image(file).pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the pixels that `read_image` gives, from the file's header alone.

    Raises:
        UnreadableImage: if the header cannot be read.
    """
    try:
        with warnings.catch_warnings(), Image.open(path, formats=_readable_formats()) as image:
            warnings.simplefilter("ignore")
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
            return image.size if turned else (image.height, image.width)
    except Exception as error:
        raise UnreadableImage(_reason(error), path) from error


@contextmanager
def decoding_rules() -> Iterator[None]:
    """Refuses truncated files and keeps Pillow's warnings quiet; for all threads, hence not inside `decode_image`."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES  # other libraries set it for everyone
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before


def decode_image(file: str | Path | BinaryIO) -> DecodedImage:
    """`read_image` with notes; call it under `decoding_rules`, once for many threads."""
    path = file if isinstance(file, str | Path) else None
    try:
        with Image.open(file, formats=_readable_formats()) as image:
            return _decode(image)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from None
    except Exception as error:  # broken files make the readers raise nearly anything: this is the border to them
        raise UnreadableImage(_reason(error), path) from error


def _decode(image: Image.Image) -> DecodedImage:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(f"it has {width} x {height} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")
    image.load()
    notes: list[str] = []
    upright = _apply_orientation(image, notes)
    rgb = _to_rgb(upright, notes)
    if _frame_count(image) > 1:  # asked last, since it moves through the file
        notes.append(f"first of {_frame_count(image)} frames")
    pixels = torch.from_numpy(np.array(rgb, dtype=np.uint8)).permute(2, 0, 1).contiguous()  # (3, height, width)
    return DecodedImage(pixels, tuple(notes))


def _apply_orientation(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the pixels, which are decoded by now
        notes.append("unreadable EXIF data ignored")
        return image


def _to_rgb(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        notes.append(f"{'floating point' if image.mode == 'F' else '16 bits or more'} reduced to 8 bits")
        return _deep_to_gray(image).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image, notes)
    if image.mode == "CMYK":
        notes.append("CMYK converted without a colour profile")
    return image.convert("RGB")


def _on_white(image: Image.Image, notes: list[str]) -> Image.Image:
    if image.mode == "La":  # premultiplied grey converts to nothing else
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    if rgba.getchannel("A").getextrema() == (255, 255):  # an alpha channel that hides nothing
        return rgba.convert("RGB")
    notes.append("transparency composited on white")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _deep_to_gray(image: Image.Image) -> Image.Image:
    """One channel of more than 8 bits -> 8 bits, by the range that its type stands for."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        scaled = values.astype(np.float64) / 257  # 65535 / 255
    else:
        finite = np.isfinite(values)
        if not finite.any():
            raise UnreadableImage("none of its values is a finite number")
        values = np.where(finite, values, 0).astype(np.float64)
        scaled = (values - _black(image.mode, values)) * _scale(image.mode, values)
    return Image.fromarray(scaled.round().clip(0, 255).astype(np.uint8))


def _conventional_top(mode: str, values: np.ndarray) -> float | None:
    """The value that means white where a convention fits the values, else None."""
    if values.min() < 0:
        return None
    tops = (1.0, 255.0) if mode == "F" else (255.0, 65535.0)
    return next((top for top in tops if values.max() <= top), None)


def _black(mode: str, values: np.ndarray) -> float:
    return 0.0 if _conventional_top(mode, values) is not None else float(values.min())


def _scale(mode: str, values: np.ndarray) -> float:
    top = _conventional_top(mode, values)
    span = top if top is not None else float(values.max() - values.min())
    return 255.0 / span if span > 0 else 0.0


def _frame_count(image: Image.Image) -> int:
    try:
        return int(getattr(image, "n_frames", 1))
    except Exception:  # a later frame is damaged: the first one is all that is used
        return 1


def _readable_formats() -> list[str]:
    Image.init()
    return [name for name in Image.OPEN if name not in _NEVER_OPENED]


def _reason(error: Exception) -> str:
    if isinstance(error, Image.DecompressionBombError):
        return f"it is too large to be decoded safely ({error})"
    if isinstance(error, Image.UnidentifiedImageError):
        return "it is empty, damaged at the start, or in a format that Pillow does not read"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be opened: {error.strerror}"
    return f"it is truncated or corrupt ({type(error).__name__}: {str(error) or 'no details'})"


def resize(image: Tensor, size: int | tuple[int, int], mode: str = "bilinear") -> Tensor:
    """Resizes with antialiasing.

    Args:
        image: (..., 3, height, width), uint8 or floating point.
        size: (height, width), or one number for both.
        mode: "bilinear" or "bicubic".

    Returns:
        (..., 3, new height, new width) of the same type; uint8 is rounded, not cut.
    """
    size = (size, size) if isinstance(size, int) else size
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    batch = image.reshape(-1, *image.shape[-3:]).to(torch.float32 if image.dtype == torch.uint8 else image.dtype)
    resized = F.interpolate(batch, size=size, mode=mode, antialias=True, align_corners=False)
    if image.dtype == torch.uint8:
        resized = resized.round_().clamp_(0, 255).to(torch.uint8)  # bicubic overshoots
    return resized.reshape(*image.shape[:-2], *size)


def short_side_size(height: int, width: int, size: int, multiple: int = 1) -> tuple[int, int]:
    """(height, width) with the aspect kept, the short side ``size`` and both sides the nearest multiple."""
    scale = size / min(height, width)

    def fit(side: int) -> int:
        return max(multiple, multiple * round(side * scale / multiple))

    return fit(height), fit(width)


def resize_short_side(image: Tensor, size: int, multiple: int = 1, mode: str = "bilinear") -> Tensor:
    """Resizes so that the short side is ``size`` and each side a multiple of ``multiple``; see `resize`."""
    return resize(image, short_side_size(image.shape[-2], image.shape[-1], size, multiple), mode)


def clamp_aspect(image: Tensor, most: float = MAX_ASPECT) -> Tensor:
    """Cuts both ends off a picture that is longer than ``most`` times its short side; others are returned as they are.

    Label maps and latents of an image both refer to what is left, so they agree.
    """
    top, left, height, width = kept_window(image.shape[-2], image.shape[-1], most)
    return image[..., top : top + height, left : left + width]


def kept_window(height: int, width: int, most: float = MAX_ASPECT) -> tuple[int, int, int, int]:
    """Top, left, height and width of what `clamp_aspect` leaves of a picture of the given size."""
    kept_height, kept_width = (min(side, int(most * min(height, width))) for side in (height, width))
    return (height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width


def to_unit(image: Tensor) -> Tensor:
    """uint8 0...255 -> float32 -1...1, the range of ``pixel_values``."""
    return image.to(torch.float32) / 127.5 - 1


def to_uint8(pixel_values: Tensor) -> Tensor:
    """-1...1 -> uint8, what lies outside is clamped; exact inverse of `to_unit`."""
    return ((pixel_values.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
