"""Colour statistics as patch features: no network, no weights. What any learned feature has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.images import clamp_aspect, short_side_size


class ColorFeatures:
    """Mean colour and local contrast of every cell, without its position.

    Five numbers in opponent coordinates and a constant: lightness, red-green, blue-yellow, the standard deviation of
    lightness inside the cell, that of colour, and ``bias``. The constant lifts the vectors off the origin, so that the
    angle between two of them grows with their distance and grey has a direction.

    Args:
        grid: cells along the shorter side; the longer one follows the image's aspect, at most 3:1.
        bias: the constant; the larger, the nearer cosine k-means comes to Euclidean k-means.
    """

    dim = 6

    def __init__(self, grid: int = 16, bias: float = 0.5) -> None:
        if grid < 2:
            raise ValueError(f"grid must be at least 2 cells, got {grid}")
        self.grid = grid
        self.bias = bias
        self.id = "color"
        self.hash = f"color-v1-grid{grid}-bias{bias:g}"

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (3, height, width) images -> one float32 (grid height, grid width, 6) tensor each."""
        return [self._describe(clamp_aspect(image)) for image in images]

    def _describe(self, image: Tensor) -> Tensor:
        shape = short_side_size(image.shape[1], image.shape[2], self.grid)
        statistics = color_statistics(image[None].float() / 255, shape)[0]
        constant = torch.full((1, *shape), self.bias)
        return torch.cat([statistics, constant]).permute(1, 2, 0).contiguous()


def color_statistics(images: Tensor, shape: tuple[int, int]) -> Tensor:
    """Mean and contrast of every cell in opponent coordinates.

    Args:
        images: (B, 3, H, W) in 0...1.
        shape: cells, (grid height, grid width).

    Returns:
        (B, 5, grid height, grid width): lightness - 0.5, red - green, yellow - blue, and the standard deviations of
        lightness and of colour inside the cell.
    """
    red, green, blue = images.unbind(dim=1)
    opponent = torch.stack([(red + green + blue) / 3 - 0.5, red - green, (red + green) / 2 - blue], dim=1)
    mean = F.adaptive_avg_pool2d(opponent, shape)  # (B, 3, gh, gw)
    variance = (F.adaptive_avg_pool2d(opponent.square(), shape) - mean.square()).clamp_min(0)
    contrast = torch.stack([variance[:, 0].sqrt(), variance[:, 1:].sum(dim=1).sqrt()], dim=1)
    return torch.cat([mean, contrast], dim=1)
