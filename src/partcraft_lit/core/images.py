"""Decoding of image files, resizing and value ranges.

Pillow and torch only, so that results depend on no further library.
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile, ImageOps
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError

#: Bump when the same file would give other pixels or another verdict: the store depends on it.
READER_VERSION = 2
#: Minimum side in pixels.
MIN_SIDE = 8
#: Images with more pixels are decoded at 1/2, 1/4 or 1/8 of their size: decoding one needs about 16 bytes per pixel.
MAX_PIXELS = 1 << 26
#: Images with more pixels are decoded one at a time, whatever the number of threads.
_LARGE = 1 << 24
_one_large_image = threading.Lock()
#: Maximum aspect ratio; longer images lose both ends.
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
        notes: conversions worth telling the user, for instance "first of 12 frames".
        variant: names conversions that an earlier reader did not make, so that what it stored is not taken for these
            pixels; else "".
    """

    pixels: Tensor
    notes: tuple[str, ...] = ()
    variant: str = ""


def readable_extensions() -> frozenset[str]:
    """Lower-case file name extensions, with the dot, of the formats that `read_image` opens."""
    formats = set(_readable_formats())
    # MPO files are opened by the JPEG reader, so the format is not among those that open.
    return frozenset(
        extension.lower()
        for extension, name in Image.registered_extensions().items()
        if name in formats or (name == "MPO" and "JPEG" in formats)
    )


def read_image(file: str | Path | BinaryIO) -> Tensor:
    """Reads an image in any format that Pillow decodes.

    The EXIF orientation is applied, colours are converted from the embedded ICC profile to sRGB (perceptual intent),
    transparency is composited on white, palettes and CMYK become RGB, 16 bits are scaled to 8, animations give their
    first frame, and images of more than 67 megapixels are decoded at a fraction of their size. `decode_image` also
    returns notes about this.

    Returns:
        (3, height, width) uint8 RGB.

    Raises:
        UnreadableImage: if the file is missing, truncated, corrupt, no image, smaller than 8 pixels on a side, or too
            large to decode within bounded memory.
    """
    with decoding_rules():
        return decode_image(file).pixels


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the pixels that `read_image` returns, from the file header alone.

    Raises:
        UnreadableImage: if the header cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_readable_formats()) as image:
                # Pillow turns a TIFF by itself and gives the size after that.
                turned = image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
                width, height = _reduced_size(image.size)
                return (width, height) if turned else (height, width)
    except Exception as error:
        raise UnreadableImage(_reason(error), path) from error


@contextmanager
def decoding_rules() -> Iterator[None]:
    """Refuses truncated files and silences Pillow's warnings; process-wide, hence not inside `decode_image`."""
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
        # Not by path: Pillow would map an uncompressed TIFF into memory, and scramble one that has to be turned.
        opened = nullcontext(file) if path is None else Path(path).open("rb")  # noqa: SIM115 - below
        with opened as content, Image.open(content, formats=_readable_formats()) as image:
            return _decode(image)
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from None
    except Exception as error:  # broken files make the readers raise nearly anything
        raise UnreadableImage(_reason(error), path) from error


def pixels_of(image: Image.Image) -> Tensor:
    """The pixels of an image that is open or in memory, converted as `read_image` converts those of a file.

    Raises:
        UnreadableImage: as there.
    """
    try:
        with decoding_rules():
            return _decode(image).pixels
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(_reason(error)) from error


def _decode(image: Image.Image) -> DecodedImage:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise UnreadableImage(f"it has {width} x {height} pixels, at least {MIN_SIDE} x {MIN_SIDE} are needed")
    notes: list[str] = []
    variant: list[str] = []
    with _one_large_image if width * height > _LARGE else nullcontext():
        upright = _load(image, notes, variant)
        if image.format != "TIFF":  # which Pillow turns by itself
            upright = _apply_orientation(upright, notes)
        rgb = _to_rgb(upright, notes, variant)
        if _frame_count(image) > 1:  # asked last, since it moves through the file
            notes.append(f"first of {_frame_count(image)} frames")
        pixels = torch.from_numpy(np.array(rgb, dtype=np.uint8)).permute(2, 0, 1).contiguous()  # (3, height, width)
    return DecodedImage(pixels, tuple(notes), ", ".join(variant))


def _load(image: Image.Image, notes: list[str], variant: list[str]) -> Image.Image:
    """Decodes, at a fraction of the size if the image is too large."""
    factor, (width, height) = _reduction(image.size), image.size
    if factor == 1:
        image.load()
        return image
    notes.append(f"{width} x {height} pixels decoded at 1/{factor} of the size")
    variant.append(f"1/{factor}")
    image.draft(image.mode, (width // factor, height // factor))  # JPEG decodes at a fraction by itself
    drafted = image.size != (width, height)
    image.load()
    if drafted:
        return image
    if image.mode in ("I", "F"):
        raise UnreadableImage(f"it has {width} x {height} pixels, too many for a file of 32 bits per channel")
    if image.mode.startswith("I;16"):
        reduced = _deep_to_gray(image).reduce(factor)
    elif image.has_transparency_data:  # premultiplied, so that hidden colours do not bleed
        reduced = image.convert("RGBA").convert("RGBa").reduce(factor).convert("RGBA")
    else:
        reduced = (image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")).reduce(factor)
    reduced.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return reduced


def _reduction(size: tuple[int, int]) -> int:
    """The first of 1, 2, 4 and 8 by which both sides are divided to stay within ``MAX_PIXELS``."""
    pixels = size[0] * size[1]
    return next((factor for factor in (1, 2, 4) if pixels <= MAX_PIXELS * factor**2), 8)


def _reduced_size(size: tuple[int, int]) -> tuple[int, int]:
    factor = _reduction(size)
    return -(-size[0] // factor), -(-size[1] // factor)


def _apply_orientation(image: Image.Image, notes: list[str]) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data says nothing about the pixels, which are decoded by now
        notes.append("unreadable EXIF data ignored")
        return image


def _to_rgb(image: Image.Image, notes: list[str], variant: list[str]) -> Image.Image:
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        notes.append(f"{'floating point' if image.mode == 'F' else '16 bits or more'} reduced to 8 bits")
        return _apply_profile(_deep_to_gray(image), profile, notes, variant).convert("RGB")
    if image.has_transparency_data:
        return _on_white(image, profile, notes, variant)
    if image.mode == "CMYK":
        converted = _apply_profile(image, profile, notes, variant)
        if converted is image:
            notes.append("CMYK converted without a colour profile")
        return converted.convert("RGB")
    return _apply_profile(image if image.mode == "L" else image.convert("RGB"), profile, notes, variant).convert("RGB")


def _on_white(image: Image.Image, profile: bytes | None, notes: list[str], variant: list[str]) -> Image.Image:
    if image.mode == "La":  # premultiplied grey converts to nothing else
        image = image.convert("LA")
    rgba = image.convert("RGBA")
    alpha = rgba.getchannel("A")
    colours = image.convert("L") if image.mode in ("L", "LA") else rgba.convert("RGB")
    colours = _apply_profile(colours, profile, notes, variant).convert("RGB")
    if alpha.getextrema() == (255, 255):  # an alpha channel that hides nothing
        return colours
    notes.append("transparency composited on white")
    colours.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), colours).convert("RGB")


def _apply_profile(image: Image.Image, profile: bytes | None, notes: list[str], variant: list[str]) -> Image.Image:
    """sRGB of an image in mode L, RGB or CMYK; the very same object where its colours stay as they are."""
    if not profile:
        return image
    try:
        transform, mode, name = _transform_to_srgb(profile)
    except Exception:  # a damaged profile makes littlecms raise nearly anything
        notes.append("unreadable colour profile ignored")
        return image
    if transform is None:
        return image
    if image.mode != mode and not (image.mode == "L" and mode == "RGB"):
        notes.append(f"colour profile {name!r} ignored: it is for {mode}, the image is {image.mode}")
        return image
    notes.append(f"colours converted from the profile {name!r} to sRGB")
    variant.append("sRGB")
    converted = ImageCms.applyTransform(image if image.mode == mode else image.convert(mode), transform)
    assert converted is not None
    return converted


@lru_cache(maxsize=16)
def _transform_to_srgb(profile: bytes) -> tuple[ImageCms.ImageCmsTransform | None, str, str]:
    """The transform from a profile to sRGB (None where both agree within 2 of 255), its input mode, the profile's name.

    Raises:
        PyCMSError: if the profile cannot be read.
        KeyError: if it is for neither grey, RGB nor CMYK.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    mode = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}[source.profile.xcolor_space.strip()]
    name = ImageCms.getProfileDescription(source).strip() or "without a name"
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), mode, "RGB", renderingIntent=ImageCms.Intent.PERCEPTUAL
    )
    if mode == "CMYK":
        return transform, mode, name
    probe = _probe_colours().convert(mode)
    converted = ImageCms.applyTransform(probe, transform)
    off = np.array(converted, dtype=np.int16) - np.array(probe.convert("RGB"), dtype=np.int16)
    return transform if np.abs(off).max() > 2 else None, mode, name


def _probe_colours() -> Image.Image:
    """A 17 x 17 x 17 grid of RGB colours with all greys in it."""
    levels = np.linspace(0, 255, 17).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1, 3)
    greys = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    return Image.fromarray(np.concatenate([grid, greys])[None])


def _deep_to_gray(image: Image.Image) -> Image.Image:
    """One channel of more than 8 bits -> 8 bits, by the range that its type stands for; rounds to nearest."""
    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))  # 257 = 65535 / 255
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
    """Resizes the short side to ``size`` and both sides to multiples of ``multiple``; see `resize`."""
    return resize(image, short_side_size(image.shape[-2], image.shape[-1], size, multiple), mode)


def clamp_aspect(image: Tensor, most: float = MAX_ASPECT) -> Tensor:
    """Crops both ends of an image longer than ``most`` times its short side; others are returned unchanged.

    Label maps and latents of an image both refer to the result.
    """
    top, left, height, width = kept_window(image.shape[-2], image.shape[-1], most)
    return image[..., top : top + height, left : left + width]


def kept_window(height: int, width: int, most: float = MAX_ASPECT) -> tuple[int, int, int, int]:
    """Top, left, height and width of what `clamp_aspect` keeps of an image of the given size."""
    kept_height, kept_width = (min(side, int(most * min(height, width))) for side in (height, width))
    return (height - kept_height) // 2, (width - kept_width) // 2, kept_height, kept_width


def to_unit(image: Tensor) -> Tensor:
    """uint8 0...255 -> float32 -1...1, the range of ``pixel_values``."""
    return image.to(torch.float32) / 127.5 - 1


def to_uint8(pixel_values: Tensor) -> Tensor:
    """-1...1 -> uint8, clamped; exact inverse of `to_unit`."""
    return ((pixel_values.to(torch.float32) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
