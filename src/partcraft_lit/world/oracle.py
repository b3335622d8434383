"""An oracle for drawn birds: which species does each part of an image show?

A small network that was trained on renders with their ground truth alone (``world.pretrain.oracle``). It judges
generated images; training and discovery never see it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.images import resize, to_unit
from partcraft_lit.core.types import ABSENT
from partcraft_lit.world.zoo.looks import BIRD, COLORS, NUM_PARTS, NUM_SHAPES, TEXTURES

#: Side of the images that the network reads.
SIZE = 64
FILE_NAME = "oracle.safetensors"
_WIDTHS = (24, 48, 96)  # of features at a half, a quarter and an eighth of the image's side
_HIDDEN = 64
#: Width of each aspect's answer, in the order of a look's columns.
_ASPECTS = {"shape": NUM_SHAPES, "color": len(COLORS), "texture": len(TEXTURES)}


@dataclass(frozen=True)
class LookReading:
    """What a batch of images shows.

    Attributes:
        presence: (B, parts) probability that the part is visible.
        color: (B, parts, 10) logits.
        texture: (B, parts, 3) logits.
        shape: (B, parts, 4) logits.
    """

    presence: Tensor
    color: Tensor
    texture: Tensor
    shape: Tensor

    def looks(self) -> Tensor:
        """(B, parts, 3) most probable shape, colour and texture of each part, whether it is visible or not."""
        return torch.stack([getattr(self, aspect).argmax(dim=-1) for aspect in _ASPECTS], dim=-1)

    def log_probability(self, looks: Tensor) -> Tensor:
        """(species, parts, 3) looks -> (B, parts, species) joint log-probability of each species' look."""
        total = torch.zeros(())
        for column, aspect in enumerate(_ASPECTS):
            log_probs = getattr(self, aspect).log_softmax(dim=-1)  # (B, parts, values)
            requested = looks[:, :, column].T.to(log_probs.device)  # (parts, species)
            total = total.to(log_probs.device) + log_probs.gather(2, requested[None].expand(len(log_probs), -1, -1))
        return total


@dataclass(frozen=True)
class OracleReading(LookReading):
    """A reading with the nearest species.

    Attributes:
        species: (B, parts) species whose look is the most probable, ``ABSENT`` where the part is not visible.
    """

    species: Tensor


@dataclass(frozen=True)
class NetworkOutput:
    """Logits of everything: presence (B, P), colour (B, P, 10), texture (B, P, 3), shape (B, P, 4), and of the part at
    each place, background first, ``places`` (B, P + 1, 32, 32)."""

    presence: Tensor
    color: Tensor
    texture: Tensor
    shape: Tensor
    places: Tensor


class LookNetwork(nn.Module):
    """Finds the parts, gathers features under each, and reads the look from them with a head per part."""

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = _WIDTHS
        self.stem = nn.Sequential(_conv(3, fine, kernel=5, stride=2), _conv(fine, fine))
        self.down = nn.Sequential(_conv(fine, middle, stride=2), _conv(middle, middle), _conv(middle, middle))
        self.bottom = nn.Sequential(_conv(middle, coarse, stride=2), *(_conv(coarse, coarse) for _ in range(3)))
        self.from_bottom = nn.Conv2d(coarse, middle, 1)
        self.up = _conv(middle, middle)
        self.from_middle = nn.Conv2d(middle, fine, 1)
        self.top = _conv(fine, fine)
        self.places = nn.Conv2d(fine, NUM_PARTS + 1, 1)
        gathered = 2 * fine + 2 * middle + 6 + 1
        outputs = 1 + sum(_ASPECTS.values())
        self.head_in = nn.Parameter(torch.randn(NUM_PARTS, gathered, _HIDDEN) / gathered**0.5)
        self.head_bias = nn.Parameter(torch.zeros(NUM_PARTS, _HIDDEN))
        self.head_out = nn.Parameter(torch.randn(NUM_PARTS, _HIDDEN, outputs) / _HIDDEN**0.5)
        self.out_bias = nn.Parameter(torch.zeros(NUM_PARTS, outputs))

    def forward(self, pixel_values: Tensor) -> NetworkOutput:
        """(B, 3, 64, 64) in -1...1."""
        fine = self.stem(pixel_values)
        middle = self.down(fine)
        around = self.up(middle + _double(self.from_bottom(self.bottom(middle))))
        top = self.top(fine + _double(self.from_middle(around)))
        places = self.places(top).float()
        small = F.avg_pool2d(pixel_values, 2)
        # squares: the spread of a colour inside a part tells a texture
        half = torch.cat([fine, top, small, small.square()], dim=1)
        quarter = torch.cat([middle, around], dim=1)
        share = places.softmax(dim=1)[:, 1:]
        gathered = [_gather(half, share), _gather(quarter, F.avg_pool2d(share, 2))]
        area = share.sum(dim=(2, 3)).add(1).log()[:, :, None]
        features = torch.cat([*gathered, area], dim=2)  # (B, P, gathered)
        hidden = F.silu(torch.einsum("bpi,pio->bpo", features, self.head_in) + self.head_bias)
        answers = torch.einsum("bpi,pio->bpo", hidden, self.head_out) + self.out_bias
        presence, shape, color, texture = answers.float().split([1, *_ASPECTS.values()], dim=2)
        return NetworkOutput(presence[:, :, 0], color, texture, shape, places)


def _conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.GroupNorm(4, outputs), nn.SiLU())


def _double(values: Tensor) -> Tensor:
    return F.interpolate(values, scale_factor=2.0, mode="nearest")


def _gather(features: Tensor, share: Tensor) -> Tensor:
    """Mean of features (B, D, h, w) under each part's share of the places (B, P, h, w): (B, P, D) in float32."""
    weights = share / (share.sum(dim=(2, 3), keepdim=True) + 0.25)
    return torch.einsum("bdn,bpn->bpd", features.float().flatten(2), weights.flatten(2))


class LookOracle:
    """Reads presence, colour, texture and shape of the five parts of a bird.

    Args:
        path: a file that ``pretrain.oracle.save_oracle`` wrote; by default the one in the package.
        device: where it computes.
        batch_size: images at a time.

    Raises:
        UserError: if the weights are missing or are not this network's.
    """

    part_names: Sequence[str] = BIRD.part_names

    def __init__(
        self, path: str | Path | None = None, device: str | torch.device = "cpu", batch_size: int = 128
    ) -> None:
        self.path = packaged_oracle() if path is None else Path(path)
        self.device = torch.device(device)
        self._batch_size = batch_size
        self._network = load_network(self.path).to(self.device)

    @torch.inference_mode()
    def read(self, images: Tensor) -> LookReading:
        """Reads uint8 (B, 3, height, width) images; sides other than 64 are resized. The answer is on the CPU.

        Raises:
            ValueError: if ``images`` is anything else.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise ValueError(f"images must be uint8 (B, 3, height, width), got {images.dtype} {tuple(images.shape)}.")
        pieces = [self._read(piece) for piece in images.split(self._batch_size)] if len(images) else [_nothing()]
        fields = ("presence", "color", "texture", "shape")
        return LookReading(**{name: torch.cat([getattr(piece, name) for piece in pieces]).cpu() for name in fields})

    def _read(self, images: Tensor) -> LookReading:
        if images.shape[2:] != (SIZE, SIZE):
            images = torch.stack([resize(image, (SIZE, SIZE)) for image in images])
        output = self._network(to_unit(images.to(self.device)))
        return LookReading(output.presence.sigmoid(), output.color, output.texture, output.shape)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # frozen: copies of a metric share it


class SpeciesOracle(LookOracle):
    """Reads which of a run's species each part shows.

    Args:
        path: as in :class:`LookOracle`.
        looks: (species, parts, 3) integer shape, colour and texture, as ``zoo.looks.species_table`` gives them.
        device: where it computes.
        batch_size: images at a time.

    Raises:
        UserError: if the weights are missing or are not this network's.
        ValueError: if ``looks`` are no looks of birds.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        looks: Tensor,
        device: str | torch.device = "cpu",
        batch_size: int = 128,
    ) -> None:
        self.looks = _checked_looks(looks)
        super().__init__(path, device, batch_size)

    def read(self, images: Tensor) -> OracleReading:
        """As :meth:`LookOracle.read`, with the species of each part."""
        reading = super().read(images)
        nearest = reading.log_probability(self.looks).argmax(dim=-1)
        species = torch.where(reading.presence >= 0.5, nearest, ABSENT)
        return OracleReading(reading.presence, reading.color, reading.texture, reading.shape, species)


class OracleMetric(Metric):
    """Counts of correct answers and of requests, as an oracle reads them.

    Args:
        oracle: reads the images; it is shared by copies and is no part of the metric's state.
        counts: name -> shape of each count.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    right: Tensor
    requested: Tensor

    def __init__(self, oracle: LookOracle, counts: Mapping[str, tuple[int, ...]], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.oracle = oracle
        for name, shape in counts.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def count(self, **flags: Tensor) -> None:
        """Adds (B, ...) flags to the counts of their names."""
        for name, flag in flags.items():
            total = getattr(self, name)
            total += flag.sum(dim=0).to(total)


class PartAccuracy(OracleMetric):
    """Share of requested parts that show the requested species.

    A part that is requested and cannot be seen is wrong; what the image shows where nothing was requested does not
    count.

    Args:
        oracle: as in :class:`OracleMetric`.
    """

    oracle: SpeciesOracle
    right_color: Tensor
    seen: Tensor

    def __init__(self, oracle: SpeciesOracle, **kwargs: Any) -> None:
        super().__init__(oracle, dict.fromkeys(("right", "right_color", "seen", "requested"), (NUM_PARTS,)), **kwargs)

    def update(self, images: Tensor | OracleReading, species: Tensor) -> None:
        """Scores a batch.

        Args:
            images: uint8 (B, 3, height, width), or what the oracle read in them.
            species: (B, parts) requested species, ``ABSENT`` for none.

        Raises:
            ValueError: if ``species`` does not fit.
        """
        reading = images if isinstance(images, OracleReading) else self.oracle.read(images.cpu())
        _check_shape("species", species, tuple(reading.species.shape))
        species, count = species.cpu().long(), len(self.oracle.looks)
        if species.numel() and not (int(species.min()) >= ABSENT and int(species.max()) < count):
            raise ValueError(
                f"species must be {ABSENT}...{count - 1}, got {int(species.min())}...{int(species.max())}."
            )
        requested, seen = species != ABSENT, reading.species != ABSENT
        colors = self.oracle.looks[species.clamp_min(0), torch.arange(NUM_PARTS), 1]
        right_color = requested & seen & (reading.color.argmax(dim=-1) == colors)
        self.count(
            requested=requested,
            seen=requested & seen,
            right=requested & (reading.species == species),
            right_color=right_color,
        )

    def compute(self) -> dict[str, Tensor]:
        """Shares in 0...1, NaN where nothing was requested.

        Returns:
            "all" (right parts over requested parts), "part/<name>", "color" (parts of the right colour, of whichever
            species) and "seen" (parts that are visible at all).
        """
        total = self.requested.sum()
        result = {
            "all": self.right.sum() / total,
            "color": self.right_color.sum() / total,
            "seen": self.seen.sum() / total,
        }
        shares = self.right / self.requested
        return result | {f"part/{name}": share for name, share in zip(self.oracle.part_names, shares, strict=True)}


class LookAccuracy(OracleMetric):
    """Share of described parts that look as described: how well the base model follows captions.

    Args:
        oracle: as in :class:`OracleMetric`.
    """

    def __init__(self, oracle: LookOracle, **kwargs: Any) -> None:
        super().__init__(oracle, dict.fromkeys(("right", "requested"), (NUM_PARTS, len(_ASPECTS))), **kwargs)

    def update(self, images: Tensor | LookReading, looks: Tensor) -> None:
        """Scores a batch.

        Args:
            images: uint8 (B, 3, height, width), or what the oracle read in them.
            looks: (B, parts, 3) requested shape, colour and texture, ``ABSENT`` for none.

        Raises:
            ValueError: if ``looks`` do not fit.
        """
        reading = images if isinstance(images, LookReading) else self.oracle.read(images.cpu())
        found = reading.looks()
        _check_shape("looks", looks, tuple(found.shape))
        looks = looks.cpu()
        requested, seen = looks != ABSENT, reading.presence[:, :, None] >= 0.5
        self.count(requested=requested, right=requested & seen & (found == looks))

    def compute(self) -> dict[str, Tensor]:
        """Shares in 0...1, NaN where nothing was requested.

        Returns:
            "color", "texture", "shape" over all parts, and "color/<part>" and so on.
        """
        result = {}
        for column, aspect in enumerate(_ASPECTS):
            right, requested = self.right[:, column], self.requested[:, column]
            result[aspect] = right.sum() / requested.sum()
            for name, share in zip(self.oracle.part_names, right / requested, strict=True):
                result[f"{aspect}/{name}"] = share
        return result


def packaged_oracle() -> Path:
    """Where the weights are that ship in the package."""
    return Path(str(resources.files("partcraft_lit"))) / "weights" / "oracle" / FILE_NAME


def load_network(path: Path) -> LookNetwork:
    """The network with the weights of a file, frozen, in float32.

    Raises:
        UserError: if the file is missing or holds something else.
    """
    if not path.is_file():
        raise UserError(
            f"The oracle's weights are missing: {path}. Install the package again, or make them with "
            f"`partcraft pretrain stage=oracle`."
        )
    network = LookNetwork()
    try:
        weights = {name: value.float() for name, value in load_file(path).items()}
        network.load_state_dict(weights)
    except Exception as error:  # safetensors raises its own kinds for a damaged file
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} does not hold the weights of this version's oracle: {reason}") from error
    return network.eval().requires_grad_(False)


def _checked_looks(looks: Tensor) -> Tensor:
    if looks.ndim != 3 or looks.shape[1:] != (NUM_PARTS, len(_ASPECTS)) or looks.is_floating_point() or not len(looks):
        wanted = f"(species, {NUM_PARTS}, {len(_ASPECTS)})"
        raise ValueError(f"looks must be integers of shape {wanted}, got {looks.dtype} {tuple(looks.shape)}.")
    looks = looks.cpu().long()
    for column, (aspect, values) in enumerate(_ASPECTS.items()):
        if not bool(((looks[:, :, column] >= 0) & (looks[:, :, column] < values)).all()):
            raise ValueError(f"looks name a {aspect} outside 0...{values - 1}.")
    return looks


def _check_shape(name: str, values: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(values.shape) != expected or values.is_floating_point():
        found = f"{tuple(values.shape)} {values.dtype}"
        raise ValueError(f"{name} must be integers of shape {expected}, got {found}.")


def _nothing() -> LookReading:
    sizes = (len(COLORS), len(TEXTURES), NUM_SHAPES)
    return LookReading(torch.zeros(0, NUM_PARTS), *(torch.zeros(0, NUM_PARTS, size) for size in sizes))
