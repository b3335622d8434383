"""The embedded patch features: a small self-supervised network, sharpened along edges, beside plain colours."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.images import clamp_aspect, resize, short_side_size
from partcraft_lit.world.patch_network import STRIDE, PatchNetwork

#: Shorter side that the network sees, in pixels, as in its training.
SIZE = 64
WEIGHTS = "features.safetensors"
DESCRIPTION = "features.json"
_FORMAT = 1
_APPEARANCE = 7


@dataclass(frozen=True)
class MiniSettings:
    """How the network's description becomes a feature.

    Attributes:
        stride: pixels of the resized image per cell side: 1, 2 or 4.
        appearance: weight of the appearance part, the network's own having length 1. Parts are found without it.
        reach: pixels to which a place borrows from others of its colour; 0 leaves the network's output as it is.
        color_reach: distance in RGB (0...1) at which it stops to.
        rounds: how often.
    """

    stride: int = 1
    appearance: float = 2.0
    reach: int = 8
    color_reach: float = 0.06
    rounds: int = 2


class MiniFeatures:
    """Features of a small network that was trained without labels on drawn creatures, and of local colour.

    The first ``network.dim`` channels are invariant to colour; the others describe appearance.

    Args:
        path: folder with weights and description; None takes the ones that come with the package.
        batch_size: images per forward pass.
        device: where the network runs; features come back on the CPU.
        settings: None takes those in the description.

    Raises:
        UserError: if the weights are missing or cannot be read.
    """

    id = "mini"

    def __init__(
        self,
        path: str | Path | None = None,
        batch_size: int = 64,
        device: str | torch.device = "cpu",
        settings: MiniSettings | None = None,
    ) -> None:
        network, content, kept = load_patch_network(default_folder() if path is None else Path(path).expanduser())
        self.settings = settings or MiniSettings(**kept)
        self.device = torch.device(device)
        self.batch_size = batch_size
        self.network = network.eval().requires_grad_(False).to(self.device)
        self.semantic_dims = network.dim  # discovery finds parts by these alone
        self.dim = network.dim + _APPEARANCE
        text = json.dumps([_FORMAT, asdict(self.settings)], sort_keys=True)
        self.hash = hashlib.sha256(content + text.encode()).hexdigest()

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (3, height, width) images of any sizes -> one float32 (grid height, grid width, D) tensor each."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        cropped = [clamp_aspect(image) for image in images]
        for index, image in enumerate(cropped):
            groups[short_side_size(image.shape[1], image.shape[2], SIZE, STRIDE)].append(index)
        found: dict[int, Tensor] = {}
        for shape, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                chunk = members[start : start + self.batch_size]
                seen = torch.stack([resize(cropped[index].to(self.device).float() / 255, shape) for index in chunk])
                found.update(zip(chunk, self._describe(seen).cpu(), strict=True))
        return [found[index] for index in range(len(images))]

    def _describe(self, seen: Tensor) -> Tensor:
        """(B, 3, H, W) in 0...1 -> (B, H / stride, W / stride, D)."""
        settings = self.settings
        kinds = F.normalize(self.network(seen).float(), dim=1)
        kinds = F.interpolate(kinds, size=seen.shape[-2:], mode="bilinear", align_corners=False)
        for _ in range(settings.rounds if settings.reach > 0 else 0):
            kinds = share_along_surfaces(kinds, seen, settings.reach, settings.color_reach)
        looks = local_appearance(seen)
        if settings.stride > 1:
            kinds, looks = (F.avg_pool2d(maps, settings.stride) for maps in (kinds, looks))
        described = torch.cat([F.normalize(kinds, dim=1), settings.appearance * looks], dim=1)
        return described.permute(0, 2, 3, 1).contiguous()


def share_along_surfaces(maps: Tensor, colors: Tensor, reach: int, color_reach: float) -> Tensor:
    """Averages each place with those around it that have its colour (a bilateral filter guided by the image).

    Args:
        maps: (B, C, H, W).
        colors: (B, 3, H, W) in 0...1.
        reach: pixels in each direction; five places of each line across are looked at.
        color_reach: standard deviation of the weight's fall over colour.
    """
    spacing = max(reach // 2, 1)
    steps = range(-(reach // spacing) * spacing, reach + 1, spacing)
    padded_maps, padded_colors = (F.pad(item, (reach,) * 4, mode="replicate") for item in (maps, colors))
    height, width = maps.shape[-2:]
    total = torch.zeros_like(maps)
    weights = torch.zeros_like(maps[:, :1])
    for down in steps:
        for right in steps:
            window = (..., slice(reach + down, reach + down + height), slice(reach + right, reach + right + width))
            unlike = (padded_colors[window] - colors).square().sum(dim=1, keepdim=True)
            near = -(down**2 + right**2) / (0.5 * (reach + 1) ** 2)
            weight = (near - unlike / (2 * color_reach**2)).exp()
            total.addcmul_(weight, padded_maps[window])
            weights += weight
    return total / weights


def local_appearance(seen: Tensor) -> Tensor:
    """(B, 3, H, W) in 0...1 -> (B, 7, H, W): colour in opponent coordinates around each place, its contrast per
    coordinate, and lightness at the place itself squared, so that a mean over a part also knows the part's spread."""
    red, green, blue = seen.unbind(dim=1)
    opponent = torch.stack([(red + green + blue) / 3 - 0.5, red - green, (red + green) / 2 - blue], dim=1)
    mean = _mean_around(opponent)
    contrast = (_mean_around(opponent.square()) - mean.square()).clamp_min(0).sqrt()
    return torch.cat([opponent, 2 * contrast, 2 * opponent[:, :1].square()], dim=1)


def _mean_around(maps: Tensor, radius: int = 3) -> Tensor:
    return F.avg_pool2d(F.pad(maps, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)


# --- weights ----------------------------------------------------------------------------------------------------


def default_folder() -> Path:
    """Where the package keeps the weights."""
    return Path(__file__).resolve().parent.parent / "weights" / "features"


def save_patch_network(
    network: PatchNetwork, folder: str | Path, settings: MiniSettings, facts: dict[str, Any]
) -> None:
    """Writes weights in half precision and a description.

    Args:
        network: as trained.
        folder: is made if need be.
        settings: used by default with these weights.
        facts: about the training, plain JSON, for people.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: tensor.detach().cpu().half().contiguous() for name, tensor in network.state_dict().items()}
    description = {
        "format": _FORMAT,
        "network": {"dim": network.dim, "widths": list(network.widths), "depth": network.depth},
        "settings": asdict(settings),
        "training": facts,
    }
    atomic_write(folder / WEIGHTS, save_tensors(halves))
    atomic_write(folder / DESCRIPTION, json.dumps(description, indent=1) + "\n")


def load_patch_network(folder: Path) -> tuple[PatchNetwork, bytes, dict[str, Any]]:
    """The network, the bytes of its weights, and the settings that go with them.

    Raises:
        UserError: if a file is missing or does not fit.
    """
    missing = [name for name in (WEIGHTS, DESCRIPTION) if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"The weights of the embedded patch features are missing: no {' and no '.join(missing)} in {folder}. "
            "Install the package again, train them with 'partcraft pretrain', or give another folder or features: "
            "parts.features=color needs no weights."
        )
    content = (folder / WEIGHTS).read_bytes()
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        network = PatchNetwork(**description["network"])
        network.load_state_dict({name: tensor.float() for name, tensor in load_tensors(content).items()})
        return network, content, dict(description["settings"])
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"The weights of the embedded patch features in {folder} cannot be read: {reason}. Install the package "
            "again, or train them with 'partcraft pretrain'."
        ) from error
