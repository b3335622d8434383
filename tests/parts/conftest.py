"""Images whose parts are known: a head over a body on plain ground, drawn as blocks."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from discovery import discover
from partcraft_lit.core.images import clamp_aspect, short_side_size
from partcraft_lit.core.types import ABSENT, GroundTruth
from partcraft_lit.parts.discovery import Discovery

#: Colours that no other part has, one per species.
HEADS = ((230, 40, 40), (240, 200, 30), (250, 120, 20))
BODIES = ((30, 60, 220), (30, 180, 60), (140, 40, 200))
GROUND = (128, 128, 128)


class BlockCreatures:
    """An image source with truth: ``sizes`` cycle, every seventh image has no head, species cycle."""

    class_noun = "creature"
    part_names = ("head", "body")

    def __init__(self, number: int = 24, sizes: Sequence[tuple[int, int]] = ((64, 64),), labelled: bool = True) -> None:
        self.number = number
        self.sizes = sizes
        self.labelled = labelled
        self.class_names = tuple(f"species{index}" for index in range(len(HEADS))) if labelled else ()
        self.reads = 0

    def __len__(self) -> int:
        return self.number

    def name(self, index: int) -> str:
        return f"folder/creature_{index:03d}.png"

    def content_hash(self, index: int) -> str:
        return f"{index:064x}"

    def label(self, index: int) -> int | None:
        return index % len(HEADS) if self.labelled else None

    def has_head(self, index: int) -> bool:
        return index % 7 != 6

    def truth(self, index: int) -> GroundTruth:
        height, width = self.sizes[index % len(self.sizes)]
        generator = torch.Generator().manual_seed(index)
        top = int(torch.randint(height // 4, height // 3, (1,), generator=generator))
        left = int(torch.randint(width // 4, width // 3, (1,), generator=generator))
        label_map = torch.zeros(height, width, dtype=torch.uint8)
        if self.has_head(index):
            label_map[top : top + height // 5, left : left + width // 4] = 1
        label_map[top + height // 5 : top + height // 2, left : left + width // 2] = 2
        species = index % len(HEADS)
        return GroundTruth(label_map, (species if self.has_head(index) else ABSENT, species), self.part_names)

    def image(self, index: int) -> Tensor:
        self.reads += 1
        truth = self.truth(index)
        species = index % len(HEADS)
        colors = torch.tensor([GROUND, HEADS[species], BODIES[species]], dtype=torch.float32)
        noise = 4 * torch.randn(truth.label_map.shape, generator=torch.Generator().manual_seed(1000 + index))
        pixels = colors[truth.label_map.long()].permute(2, 0, 1) + noise
        return pixels.clamp(0, 255).to(torch.uint8)


class MeaningfulFeatures:
    """What a good network would say: a direction each for ground, head and body, and a hint of the species."""

    id = "meaningful"
    hash = "meaningful-v1"
    dim = 9

    def __init__(self, grid: int = 16) -> None:
        self.grid = grid
        self.calls = 0

    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        self.calls += len(images)
        return [self._describe(image) for image in images]

    def _describe(self, image: Tensor) -> Tensor:
        image = clamp_aspect(image)
        shape = short_side_size(image.shape[1], image.shape[2], self.grid)
        color = F.interpolate(image[None].float(), shape, mode="nearest-exact")[0].permute(1, 2, 0)
        known = torch.tensor([GROUND, *HEADS, *BODIES], dtype=torch.float32)
        kind = torch.cdist(color.reshape(-1, 3), known).argmin(dim=1).view(shape)
        meaning = torch.tensor([0, 1, 1, 1, 2, 2, 2])[kind]
        one_hot = F.one_hot(meaning, 3).float()
        species = 0.3 * F.one_hot((kind - 1).clamp_min(0) % 3, 3).float() * (meaning > 0)[..., None]
        seed = int(image.long().sum())  # of the image alone, as a network's output would be
        jitter = 0.02 * torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))
        return torch.cat([one_hot, species, jitter], dim=-1)


@pytest.fixture(scope="session")
def creatures() -> type[BlockCreatures]:
    """The class: tests choose number and sizes."""
    return BlockCreatures


@pytest.fixture(scope="session")
def meaningful() -> type[MeaningfulFeatures]:
    return MeaningfulFeatures


@pytest.fixture(scope="session")
def found() -> Discovery:
    """Parts of 42 block creatures of three shapes; not to be changed."""
    source = BlockCreatures(42, sizes=((64, 64), (64, 96), (110, 64)))
    return discover(source, MeaningfulFeatures(), M=2, K=3, names=("head", "body"))


@pytest.fixture(scope="session")
def found_source() -> BlockCreatures:
    """The images behind ``found``."""
    return BlockCreatures(42, sizes=((64, 64), (64, 96), (110, 64)))
