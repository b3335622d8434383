"""Convolutions of many weights over few places, which a CPU computes faster as a matrix product."""

from __future__ import annotations

import math
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

#: torch's kernel sorts a convolution's weights anew at every call, which costs more than the convolution itself where
#: there are many weights and few places: at 8 x 8 it takes two to five times as long as a matrix product, at 16 x 16
#: both take the same (``benchmarks/README.md``). Weights that are fewer stay in the cache.
MIN_WEIGHTS = 1 << 20
MAX_POSITIONS = 64


class Im2colConv2d(nn.Conv2d):
    """``nn.Conv2d``, as a product of its weights and the unfolded input where that is the faster way."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        height, width = (self._places(input, axis) for axis in (0, 1))
        if input.device.type != "cpu" or len(input) * height * width > MAX_POSITIONS:
            return super()._conv_forward(input, weight, bias)
        columns = F.unfold(input, self.kernel_size, self.dilation, cast(tuple[int, int], self.padding), self.stride)
        rows = columns.transpose(1, 2).flatten(0, 1)  # (B * h * w, C * k * k)
        output = F.linear(rows, weight.flatten(1), bias).unflatten(0, (len(input), height, width))
        # The order of the original's output, which the kernels that follow choose their way by.
        return output.permute(0, 3, 1, 2).contiguous()

    def _places(self, input: Tensor, axis: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        padding = cast(tuple[int, int], self.padding)[axis]
        return (input.shape[2 + axis] + 2 * padding - reach) // self.stride[axis] + 1


def use_im2col_convolutions(network: nn.Module) -> None:
    """Lets a network's convolutions of many weights choose the faster way; names and weights stay as they are."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_suitable(module):
            module.__class__ = Im2colConv2d  # the same weights: nothing is built anew


def _is_suitable(convolution: nn.Conv2d) -> bool:
    """1 x 1 convolutions are matrix products already."""
    return (
        convolution.weight.numel() >= MIN_WEIGHTS
        and math.prod(convolution.kernel_size) > 1
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )
