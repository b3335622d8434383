"""The Inception v3 of FID: the network of the original TensorFlow graph, with its quirks.

Its weights are not shipped: give the converted file that FID tools share, whose name carries its hash.
"""

from __future__ import annotations

import hashlib
import pickle
import shutil
import urllib.error
import urllib.request
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_path
from partcraft_lit.metrics.features import checked_images

FILE_NAME = "pt_inception-2015-12-05-6726825d.pth"
#: First digits of the SHA-256 of that file.
SHA256 = "6726825d"
SIDE = 299
_DIM = 2048
_CLASSES = 1008  # of the original graph, some of them unused


class InceptionFeatures:
    """Pooled features of Inception v3, 2048 numbers, as FID is defined on; the id is ``tf-299``.

    Images are resized to 299 x 299 as TensorFlow 1 did, without half-pixel centres and without antialiasing, and
    scaled by (x - 128) / 128. Other resizing gives other numbers, and would have another id.

    Args:
        network: with weights; see :func:`load_inception`.
        batch_size: images per forward pass.
        device: where it runs.
    """

    id = "tf-299"
    dim = _DIM

    def __init__(self, network: InceptionV3, batch_size: int = 50, device: str | torch.device = "cpu") -> None:
        self.network = network.requires_grad_(False).eval().to(device)
        self.batch_size = batch_size
        self.device = torch.device(device)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, 2048) float32."""
        pieces = checked_images(images).split(self.batch_size)
        with torch.autocast(self.device.type, enabled=False):
            found = [self.network(prepare(piece.to(self.device))) for piece in pieces]
        return torch.cat(found)


def prepare(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> (B, 3, 299, 299) float32 in -1...1, as the original graph prepares them."""
    return (resize_tensorflow(images.float(), SIDE) - 128) / 128


def resize_tensorflow(images: Tensor, side: int) -> Tensor:
    """Bilinear resizing of TensorFlow 1: output pixel i reads at i * (input side / output side).

    Args:
        images: (..., H, W) floating point.
        side: of the square that comes out.
    """
    for dim in (-2, -1):
        length = images.shape[dim]
        if length == side:
            continue
        place = torch.arange(side, device=images.device, dtype=torch.float32) * (length / side)
        low = place.floor().long().clamp_max(length - 1)
        high = (low + 1).clamp_max(length - 1)
        share = place - low
        share = share[:, None] if dim == -2 else share
        first, second = images.index_select(dim, low), images.index_select(dim, high)
        images = first + (second - first) * share
    return images


def load_inception(source: str | Path, sha256: str = SHA256, cache: Path | None = None) -> InceptionV3:
    """The network with the weights of a file, which is checked before it is read.

    Args:
        source: path of the file (``.pth`` or ``.safetensors``), or its address; from an address it is fetched once.
        sha256: first digits of the hash that the file must have, at least 8 of them.
        cache: folder for what is fetched; needed for an address only.

    Raises:
        UserError: if it is missing, another file, or cannot be had.
    """
    if len(sha256) < 8:
        raise UserError(f"sha256={sha256!r}: give at least 8 digits of the hash of the Inception weights.")
    path = _fetch(str(source), cache) if "://" in str(source) else Path(source).expanduser()
    if not path.is_file():
        raise UserError(
            f"No Inception weights at {path}. FID needs the file {FILE_NAME} that pytorch-fid publishes among its "
            "releases; copy it here and give its path. KID and FID on other features need no download."
        )
    found = _hash(path)
    if not found.startswith(sha256.lower()):
        raise UserError(
            f"{path} is another file: its SHA-256 begins with {found[: len(sha256)]}, wanted "
            f"{sha256}. Fetch {FILE_NAME} again, or give the hash of your own file."
        )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
        network = InceptionV3()
        network.load_state_dict(dict(state))  # without its version: then lacking counters of batches are no error
        return network
    except (RuntimeError, TypeError, ValueError, SafetensorError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} holds no Inception v3 of FID: {str(error).strip().splitlines()[0]}") from error


def load_inception_features(
    source: str | None,
    sha256: str = SHA256,
    cache: str | None = None,
    batch_size: int = 50,
    device: str | torch.device = "cpu",
) -> InceptionFeatures:
    """:func:`load_inception`, ready to describe images.

    Raises:
        UserError: if no file was named, or as :func:`load_inception`.
    """
    if source is None:
        raise UserError(
            f"metrics.inception.source has to be given for FID on Inception: the path or address of {FILE_NAME}, which "
            "pytorch-fid publishes among its releases. eval.pictures=[mini] needs no download."
        )
    network = load_inception(source, sha256, None if cache is None else Path(cache))
    return InceptionFeatures(network, batch_size, device)


class InceptionV3(nn.Module):
    """Inception v3 up to the pooled features, laid out as in the converted weights of the original graph.

    Differs from the published network: average pooling inside the mixed blocks leaves padding out of the count, the
    last block pools by maximum, and there are 1008 classes, whose layer is kept for the weights' sake and not used.

    Source: Szegedy et al. (arXiv 1512.00567), figures 5 to 7; the differences are those of the graph of 2015-12-05.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _MixedFine(192, pooled=32)
        self.Mixed_5c = _MixedFine(256, pooled=64)
        self.Mixed_5d = _MixedFine(288, pooled=64)
        self.Mixed_6a = _ShrinkFine(288)
        self.Mixed_6b = _MixedMiddle(768, inner=128)
        self.Mixed_6c = _MixedMiddle(768, inner=160)
        self.Mixed_6d = _MixedMiddle(768, inner=160)
        self.Mixed_6e = _MixedMiddle(768, inner=192)
        self.Mixed_7a = _ShrinkMiddle(768)
        self.Mixed_7b = _MixedCoarse(1280, pool_by_maximum=False)
        self.Mixed_7c = _MixedCoarse(2048, pool_by_maximum=True)
        self.fc = nn.Linear(_DIM, _CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 299, 299) in -1...1 -> (B, 2048)."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = F.max_pool2d(x, 3, stride=2)  # (B, 64, 73, 73)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)  # (B, 192, 35, 35)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6a(x)  # (B, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        return x.mean(dim=(2, 3))


class _Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class _MixedFine(nn.Module):
    """At 35 x 35: 1x1, 5x5, two 3x3, and pooling."""

    def __init__(self, inputs: int, pooled: int) -> None:
        super().__init__()
        self.branch1x1 = _Conv(inputs, 64, 1)
        self.branch5x5_1 = _Conv(inputs, 48, 1)
        self.branch5x5_2 = _Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, padding=1)
        self.branch_pool = _Conv(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(_average(x))], dim=1)


class _ShrinkFine(nn.Module):
    """35 x 35 -> 17 x 17."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3 = _Conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1 = _Conv(inputs, 64, 1)
        self.branch3x3dbl_2 = _Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = _Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class _MixedMiddle(nn.Module):
    """At 17 x 17: 1x1, one and two 7x7 that are split in rows and columns, and pooling."""

    def __init__(self, inputs: int, inner: int) -> None:
        super().__init__()
        row: tuple[tuple[int, int], tuple[int, int]] = ((1, 7), (0, 3))
        column: tuple[tuple[int, int], tuple[int, int]] = ((7, 1), (3, 0))
        self.branch1x1 = _Conv(inputs, 192, 1)
        self.branch7x7_1 = _Conv(inputs, inner, 1)
        self.branch7x7_2 = _Conv(inner, inner, row[0], padding=row[1])
        self.branch7x7_3 = _Conv(inner, 192, column[0], padding=column[1])
        self.branch7x7dbl_1 = _Conv(inputs, inner, 1)
        self.branch7x7dbl_2 = _Conv(inner, inner, column[0], padding=column[1])
        self.branch7x7dbl_3 = _Conv(inner, inner, row[0], padding=row[1])
        self.branch7x7dbl_4 = _Conv(inner, inner, column[0], padding=column[1])
        self.branch7x7dbl_5 = _Conv(inner, 192, row[0], padding=row[1])
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(_average(x))], dim=1)


class _ShrinkMiddle(nn.Module):
    """17 x 17 -> 8 x 8."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.branch3x3_1 = _Conv(inputs, 192, 1)
        self.branch3x3_2 = _Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = _Conv(inputs, 192, 1)
        self.branch7x7x3_2 = _Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = _Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = _Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], dim=1)


class _MixedCoarse(nn.Module):
    """At 8 x 8: 1x1, 3x3 and 3x3 after 3x3, both fanned out in a row and a column, and pooling."""

    def __init__(self, inputs: int, pool_by_maximum: bool) -> None:
        super().__init__()
        self.pool_by_maximum = pool_by_maximum
        self.branch1x1 = _Conv(inputs, 320, 1)
        self.branch3x3_1 = _Conv(inputs, 384, 1)
        self.branch3x3_2a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = _Conv(inputs, 448, 1)
        self.branch3x3dbl_2 = _Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _Conv(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = _Conv(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = _Conv(inputs, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.pool_by_maximum else _average(x)
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double), self.branch_pool(pooled)]
        return torch.cat(parts, dim=1)


def _fetch(address: str, cache: Path | None) -> Path:
    if cache is None:
        raise UserError(f"To fetch {address}, a folder is needed to keep it in: give cache, or fetch it yourself.")
    path = cache.expanduser() / address.rstrip("/").rpartition("/")[2]
    if path.is_file():
        return path
    try:
        with urllib.request.urlopen(address, timeout=60) as answer, atomic_path(path) as new, new.open("wb") as file:
            shutil.copyfileobj(answer, file)
    except (urllib.error.URLError, TimeoutError, ValueError) as error:
        raise UserError(
            f"{address} could not be fetched ({error}). Fetch {FILE_NAME} on a machine with a network, copy it "
            "here and give its path."
        ) from error
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
