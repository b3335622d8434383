"""The small network behind the embedded patch features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Sides of what the network sees are multiples of this.
STRIDE = 4


class PatchNetwork(nn.Module):
    """A U-shaped network that describes every other pixel of an image in view of its whole surroundings.

    Levels at 1/2, 1/4 and 1/8 of the resolution; the way back up restores where exactly a part ends.

    Args:
        dim: width of the description.
        widths: channels of the three levels.
        depth: blocks of the coarsest level, which sees the whole object; every other one is dilated.
    """

    def __init__(self, dim: int = 32, widths: tuple[int, int, int] = (24, 64, 112), depth: int = 3) -> None:
        super().__init__()
        fine, middle, coarse = widths
        self.dim, self.widths, self.depth = dim, tuple(widths), depth
        self.down_fine = nn.Sequential(nn.Conv2d(3, fine, 4, stride=2, padding=1), nn.GELU())
        self.down_middle = nn.Sequential(nn.Conv2d(fine, middle, 2, stride=2), _Block(middle))
        self.down_coarse = nn.Sequential(
            nn.Conv2d(middle, coarse, 3, stride=2, padding=1),
            *(_Block(coarse, dilation=1 + index % 2) for index in range(depth)),
        )
        self.to_middle, self.up_middle = nn.Conv2d(coarse, middle, 1), _Block(middle)
        self.to_fine, self.up_fine = nn.Conv2d(middle, fine, 1), _Block(fine)
        self.head = nn.Sequential(nn.GroupNorm(8, fine), nn.GELU(), nn.Conv2d(fine, dim, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0...1, sides multiples of 4 -> (B, dim, H/2, W/2)."""
        fine = self.down_fine(normalise(images))
        middle = self.down_middle(fine)
        coarse = self.down_coarse(middle)
        middle = self.up_middle(middle + _grow(self.to_middle(coarse), middle))
        return self.head(self.up_fine(fine + _grow(self.to_fine(middle), fine)))


def normalise(images: Tensor) -> Tensor:
    """Takes brightness and contrast out of each image: zero mean, unit deviation over pixels and channels."""
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) / images.std(dim=(1, 2, 3), keepdim=True).clamp_min(0.02)


def _grow(coarse: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(coarse, size=like.shape[-2:], mode="bilinear", align_corners=False)


class _Block(nn.Module):
    """x + conv(gelu(conv(gelu(norm(x)))))."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.first = nn.Conv2d(width, width, 3, padding=dilation, dilation=dilation)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        with torch.no_grad():
            self.second.weight.mul_(0.3)  # starts near the identity

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(self.norm(x)))))
