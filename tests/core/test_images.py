"""Every kind of image file becomes 8-bit RGB, and what does not is refused with a reason."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageFile
from torch import Tensor
from torch.testing import assert_close

from miniatures import ADOBE_RGB, DISPLAY_P3, P3_GAMMA_22
from partcraft_lit.core import images
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import (
    UnreadableImage,
    clamp_aspect,
    decode_image,
    image_size,
    read_image,
    readable_extensions,
    resize,
    resize_short_side,
    to_uint8,
    to_unit,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, form: str = "PNG", **options: object) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, form, **options)
    file.seek(0)
    return file


def two_colours(mode: str = "RGB", size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Left half red, right half blue."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def colour(image: Tensor, row: int, column: int) -> tuple[int, ...]:
    return tuple(image[:, row, column].tolist())


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP", "PPM", "TGA", "GIF", "QOI", "JPEG2000"])
def test_formats_without_loss_keep_the_pixels(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    image = read_image(encoded(two_colours(), form, **options))
    assert image.shape == (3, 16, 24)
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    assert (colour(image, 0, 0), colour(image, 15, 23)) == (RED, BLUE)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "LAB"])
def test_modes_become_rgb(mode: str) -> None:
    source = Image.new("L", (16, 16), 255).convert("RGB" if mode in ("LAB", "CMYK", "YCbCr") else "L").convert(mode)
    options = {"compression": "tiff_lzw"} if mode == "YCbCr" else {}  # Pillow 12 cannot read it uncompressed
    image = read_image(encoded(source, "TIFF" if mode in ("PA", "CMYK", "YCbCr", "LAB") else "PNG", **options))
    assert image.shape == (3, 16, 16)
    assert_close(image.float(), torch.full((3, 16, 16), 255.0), atol=1.0, rtol=0)


def test_cmyk_jpeg_is_not_inverted() -> None:
    decoded = decode_image(encoded(two_colours("CMYK"), "JPEG", quality=95))
    assert colour(decoded.pixels, 8, 2)[0] > 200
    assert colour(decoded.pixels, 8, 21)[2] > 200
    assert "CMYK" in decoded.notes[0]


@pytest.mark.parametrize(
    ("profile", "upper", "lower"),
    [
        (DISPLAY_P3, (217, 42, 23), (0, 163, 40)),
        (P3_GAMMA_22, (219, 37, 13), (0, 164, 35)),
        (ADOBE_RGB, (232, 57, 34), (0, 161, 47)),
    ],
    ids=["Display P3", "P3, gamma 2.2", "Adobe RGB"],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_are_converted_to_srgb(profile: bytes, upper: tuple, lower: tuple, mode: str) -> None:
    """(200, 60, 40) and (40, 160, 60) in sRGB, by hand (Display P3) and by littlecms (perceptual)."""
    image = Image.new("RGB", (16, 16), (200, 60, 40))
    image.paste((40, 160, 60), (0, 8, 16, 16))
    decoded = decode_image(encoded(image.quantize(2) if mode == "P" else image.convert(mode), icc_profile=profile))
    for row, expected in ((0, upper), (15, lower)):
        assert_close(decoded.pixels[:, row, 3].int(), torch.tensor(expected, dtype=torch.int32), atol=1, rtol=0)
    assert "to sRGB" in decoded.notes[0] and decoded.variant == "sRGB"


def test_transparency_and_greys_with_a_profile() -> None:
    image = Image.new("RGBA", (16, 16), (200, 60, 40, 255))
    image.paste((0, 0, 0, 0), (8, 0, 16, 16))
    decoded = decode_image(encoded(image, icc_profile=DISPLAY_P3))
    assert_close(decoded.pixels[:, 3, 3].int(), torch.tensor([217, 42, 23], dtype=torch.int32), atol=1, rtol=0)
    assert colour(decoded.pixels, 3, 12) == WHITE and len(decoded.notes) == 2
    grey = decode_image(encoded(Image.new("L", (16, 16), 100), icc_profile=ADOBE_RGB))
    assert_close(grey.pixels[:, 3, 3].int(), torch.full((3,), 99, dtype=torch.int32), atol=1, rtol=0)  # gamma 2.2


def test_srgb_and_unusable_profiles_change_nothing() -> None:
    plain = decode_image(encoded(two_colours()))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    named = decode_image(encoded(two_colours(), icc_profile=srgb))
    assert torch.equal(plain.pixels, named.pixels) and named.notes == () and named.variant == ""
    for profile, note in ((DISPLAY_P3[:150], "unreadable"), (b"\0" * 500, "unreadable")):
        decoded = decode_image(encoded(two_colours(), icc_profile=profile))
        assert torch.equal(plain.pixels, decoded.pixels) and decoded.variant == ""
        assert decoded.notes == (f"{note} colour profile ignored",)
    decoded = decode_image(encoded(two_colours("CMYK"), "JPEG", icc_profile=DISPLAY_P3))
    assert "is for RGB, the image is CMYK" in decoded.notes[0]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "I;16", "CMYK", "1"])
@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF"])
def test_large_images_are_decoded_at_a_fraction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, mode: str, orientation: int
) -> None:
    if (form, mode) == ("PNG", "CMYK") or (form == "JPEG" and mode not in ("RGB", "L", "CMYK")):
        pytest.skip("there is no such file")
    monkeypatch.setattr(images, "MAX_PIXELS", 32 * 32)
    source = two_colours(size=(101, 65))
    image = Image.fromarray(np.array(source.convert("L")).astype(np.uint16) * 257) if mode == "I;16" else source
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "large"
    path.write_bytes(encoded(image if mode == "I;16" else image.convert(mode), form, exif=exif).getvalue())
    decoded = decode_image(path)
    assert image_size(path) == decoded.pixels.shape[1:] == ((17, 26) if orientation == 1 else (26, 17))
    assert any("pixels decoded at 1/4 of the size" in note for note in decoded.notes) and decoded.variant == "1/4"
    monkeypatch.undo()
    grey = decoded.pixels.float().mean(0)
    red, blue = (grey[8, 4], grey[8, 22]) if orientation == 1 else (grey[4, 8], grey[22, 8])
    expected = read_image(encoded(image if mode == "I;16" else image.convert(mode), form)).float().mean(0)
    if mode != "1":
        assert abs(red - expected[30, 20]) < 4 and abs(blue - expected[30, 80]) < 4


@pytest.mark.slow
def test_a_large_png_needs_bounded_memory(tmp_path: Path) -> None:
    """13,300 x 13,300 pixels took 6.9 GB up to the latents; a process of its own, since memory is not given back."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 13_300
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(bytes((side + 1) * side), 1)) + chunk(b"IEND", b"")
    (tmp_path / "large.png").write_bytes(b"\x89PNG\r\n\x1a\n" + head + data)
    script = (
        "import resource, sys; from partcraft_lit.core.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image = read_image(sys.argv[1])\n"
        "print(tuple(image.shape), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "large.png")], capture_output=True, text=True, check=True
    )
    shape, megabytes = found.stdout.rsplit(" ", 1)
    assert shape == "(3, 6650, 6650)" and int(megabytes) < 1000


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_undone(orientation: int) -> None:
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8))
    turn = Image.Transpose  # how a camera stores the upright image for each value: the inverse of what a viewer does
    stored_by = {
        2: turn.FLIP_LEFT_RIGHT,
        3: turn.ROTATE_180,
        4: turn.FLIP_TOP_BOTTOM,
        5: turn.TRANSPOSE,
        6: turn.ROTATE_90,
        7: turn.TRANSVERSE,
        8: turn.ROTATE_270,
    }
    stored = upright.transpose(stored_by[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(encoded(stored, "PNG", exif=exif))
    assert_close(image, torch.from_numpy(np.array(upright)).permute(2, 0, 1))


def test_a_turned_tiff_read_by_its_path(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (10, 14), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tiff", exif=exif)
    assert_close(read_image(tmp_path / "a.tiff")[0], torch.from_numpy(np.rot90(pixels, -1).copy()))
    assert image_size(tmp_path / "a.tiff") == (14, 10)


def test_damaged_exif_does_not_cost_the_picture() -> None:
    file = encoded(two_colours(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f garbage")
    assert read_image(file).shape == (3, 16, 24)


def test_transparency_is_composited_on_white() -> None:
    picture = Image.new("RGBA", (16, 16), (*RED, 255))
    picture.paste((0, 0, 0, 0), (8, 0, 16, 8))  # black under full transparency: must not show
    picture.paste((*BLUE, 51), (8, 8, 16, 16))  # a fifth of blue
    decoded = decode_image(encoded(picture))
    assert colour(decoded.pixels, 0, 0) == RED
    assert colour(decoded.pixels, 0, 12) == WHITE
    assert_close(decoded.pixels[:, 12, 12].float(), torch.tensor([204.0, 204.0, 255.0]), atol=1.0, rtol=0)
    assert decoded.notes == ("transparency composited on white",)


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    decoded = decode_image(encoded(two_colours("RGBA")))
    assert colour(decoded.pixels, 0, 0) == RED
    assert decoded.notes == ()


@pytest.mark.parametrize("mode, transparent", [("P", 0), ("L", 7), ("RGB", RED)])
def test_a_transparent_colour_is_composited_too(mode: str, transparent: object) -> None:
    picture = Image.new(mode, (16, 16), 0 if mode == "P" else transparent)
    if mode == "P":
        picture.putpalette([*RED, *BLUE])
    assert colour(read_image(encoded(picture, "PNG", transparency=transparent)), 3, 3) == WHITE


@pytest.mark.parametrize("form, mode", [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I;16B"), ("PPM", "I;16")])
def test_sixteen_bits_are_scaled_and_not_cut_off(form: str, mode: str) -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16).reshape(16, 16)
    source = Image.fromarray(values)
    if mode == "I;16B":
        source = Image.frombytes("I;16B", (16, 16), values.astype(">u2").tobytes())
    decoded = decode_image(encoded(source, form))
    assert_close(decoded.pixels, torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).expand(3, 16, 16))
    assert "reduced to 8 bits" in decoded.notes[0]


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.linspace(0, 1, 256), np.arange(256)),  # a floating-point image in 0...1
        (np.arange(256.0), np.arange(256)),  # in 0...255
        (np.linspace(-5, 5, 256), np.arange(256)),  # no convention fits: the range of its values
        (np.full(256, -3.0), np.zeros(256)),  # no range at all
        (np.where(np.arange(256) == 0, np.nan, 1.0), np.where(np.arange(256) == 0, 0, 255)),
    ],
    ids=["unit", "byte", "any", "constant", "nan"],
)
def test_floating_point_images(values: np.ndarray, expected: np.ndarray) -> None:
    image = read_image(encoded(Image.fromarray(values.astype(np.float32).reshape(16, 16)), "TIFF"))
    assert_close(image[0].flatten().long(), torch.from_numpy(expected.astype(np.int64)))


@pytest.mark.parametrize("top, bright", [(255, 255), (65535, 255), (2_000_000, 255)])
def test_integer_images(top: int, bright: int) -> None:
    values = np.zeros((16, 16), dtype=np.int32)
    values[0, 0] = top
    image = read_image(encoded(Image.fromarray(values), "TIFF"))
    assert image[:, 0, 0].tolist() == [bright] * 3
    assert image[:, 1, 1].tolist() == [0] * 3


def test_values_that_are_all_nan_are_refused() -> None:
    with pytest.raises(UnreadableImage, match="none of its values"):
        read_image(encoded(Image.fromarray(np.full((16, 16), np.nan, dtype=np.float32)), "TIFF"))


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), value) for value in (RED, GREEN, BLUE)]
    options = {"lossless": True} if form == "WEBP" else {}
    file = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    decoded = decode_image(file)
    assert colour(decoded.pixels, 8, 8) == RED
    assert decoded.notes == ("first of 3 frames",)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "JPEG2000", "AVIF", "TGA"])
@pytest.mark.parametrize("kept", [0.9, 0.5, 0.02])
def test_truncated_files_are_refused(form: str, kept: float) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    if form not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {form}")
    content = encoded(noise, form).getvalue()
    with pytest.raises(UnreadableImage):
        read_image(io.BytesIO(content[: int(kept * len(content))]))


def test_truncated_files_are_refused_even_if_someone_allowed_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    content = encoded(two_colours(size=(200, 200)), "JPEG").getvalue()
    with pytest.raises(UnreadableImage, match="truncated"):
        read_image(io.BytesIO(content[: len(content) // 2]))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_flipped_bits_are_refused() -> None:
    content = bytearray(encoded(two_colours()).getvalue())
    content[len(content) // 2] ^= 0xFF
    with pytest.raises(UnreadableImage, match="corrupt"):
        read_image(io.BytesIO(bytes(content)))


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"%PDF-1.4 no image", b"<svg></svg>", b"%!PS-Adobe-3.0 EPSF"])
def test_files_of_another_kind_are_refused(content: bytes) -> None:
    with pytest.raises(UnreadableImage, match="in a format that Pillow does not read"):
        read_image(io.BytesIO(content))


@pytest.mark.parametrize("size", [(1, 1), (7, 100), (100, 7)])
def test_specks_are_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImage, match=rf"{size[0]} x {size[1]} pixels, at least 8 x 8"):
        read_image(encoded(Image.new("RGB", size)))


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    content = bytearray(encoded(Image.new("RGB", (16, 16)), "BMP").getvalue())
    content[18:26] = struct.pack("<ii", 30_000, 30_000)  # width and height in the header
    with pytest.raises(UnreadableImage, match="too large to be decoded safely"):
        read_image(io.BytesIO(bytes(content)))


def test_a_missing_file_and_a_folder_say_so_with_the_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.png cannot be used as an image: it cannot be opened: No such file"):
        read_image(tmp_path / "no.png")
    with pytest.raises(UserError, match="cannot be opened: Is a directory"):
        read_image(tmp_path)


def test_reading_leaves_no_file_open(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    path = tmp_path / "a.tiff"
    path.write_bytes(encoded(two_colours(), "TIFF").getvalue())
    read_image(path)
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_endings_cover_the_usual_and_leave_out_what_is_no_picture() -> None:
    endings = readable_extensions()
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".mpo", ".jp2", ".psd"} <= endings
    assert not {".pdf", ".eps", ".ps", ".mpg", ".h5", ".txt", ".heic"} & endings


def test_resize_against_pillow_and_keeps_constants() -> None:
    # Pillow's own resampling is an independent implementation of the same filters.
    pixels = np.random.default_rng(1).integers(80, 176, (40, 30, 3), dtype=np.uint8)  # no overshoot: Pillow clips twice
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    for mode, pillow in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        for height, width in ((17, 11), (80, 60)):
            expected = np.array(Image.fromarray(pixels).resize((width, height), pillow))
            difference = resize(image, (height, width), mode).permute(1, 2, 0).int() - torch.from_numpy(expected).int()
            assert difference.abs().max() <= 1
    assert_close(resize(torch.full((3, 9, 9), 200, dtype=torch.uint8), 5, "bicubic"), torch.full((3, 5, 5), 200).byte())


def test_resize_takes_batches_floats_and_one_number() -> None:
    images = torch.rand(2, 5, 3, 8, 8)
    assert resize(images, (4, 6)).shape == (2, 5, 3, 4, 6)
    assert resize(images, 4).dtype == torch.float32
    assert resize(images, 8) is images


@pytest.mark.parametrize(
    "height, width, size, multiple, expected",
    [
        (100, 200, 64, 8, (64, 128)),
        (200, 100, 64, 8, (128, 64)),
        (375, 500, 224, 14, (224, 294)),
        (9, 9, 32, 8, (32, 32)),
    ],
)
def test_resize_short_side(height: int, width: int, size: int, multiple: int, expected: tuple[int, int]) -> None:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    assert tuple(resize_short_side(image, size, multiple).shape[1:]) == expected


def test_clamp_aspect_cuts_both_ends_alike() -> None:
    image = torch.arange(100).reshape(1, 1, 100).expand(3, 10, 100)
    assert clamp_aspect(image).shape == (3, 10, 30)
    assert (clamp_aspect(image)[0, 0, 0], clamp_aspect(image)[0, 0, -1]) == (35, 64)
    assert clamp_aspect(image.transpose(1, 2)).shape == (3, 30, 10)
    square = torch.zeros(3, 10, 30)
    assert clamp_aspect(square).shape == square.shape


def test_ranges_are_inverses_and_clamped() -> None:
    values = torch.arange(256, dtype=torch.uint8)
    assert_close(to_unit(values)[[0, 255]], torch.tensor([-1.0, 1.0]))
    assert_close(to_uint8(to_unit(values)), values)
    assert to_uint8(torch.tensor([-7.0, 7.0])).tolist() == [0, 255]
