"""Convolutions as im2col + matmul, a CPU fast path for many weights and few output pixels."""

from __future__ import annotations

import math
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

#: torch's kernel reorders the weights at every call, which dominates with many weights and few output pixels: at 8 x 8
#: it takes two to five times as long as a matmul, at 16 x 16 as long (``benchmarks/README.md``). Fewer weights stay in
#: the cache.
MIN_WEIGHTS = 1 << 20
MAX_POSITIONS = 64


class Im2colConv2d(nn.Conv2d):
    """``nn.Conv2d`` that unfolds its input and multiplies on a CPU with up to ``MAX_POSITIONS`` output pixels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        height, width = (self._output_size(input, axis) for axis in (0, 1))
        if input.device.type != "cpu" or len(input) * height * width > MAX_POSITIONS:
            return super()._conv_forward(input, weight, bias)
        columns = F.unfold(input, self.kernel_size, self.dilation, cast(tuple[int, int], self.padding), self.stride)
        rows = columns.transpose(1, 2).flatten(0, 1)  # (B * h * w, C * k * k)
        output = F.linear(rows, weight.flatten(1), bias).unflatten(0, (len(input), height, width))
        # Contiguous as the original's output: the next kernels are chosen by memory format.
        return output.permute(0, 3, 1, 2).contiguous()

    def _output_size(self, input: Tensor, axis: int) -> int:
        extent = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
        padding = cast(tuple[int, int], self.padding)[axis]
        return (input.shape[2 + axis] + 2 * padding - extent) // self.stride[axis] + 1


def use_im2col_convolutions(network: nn.Module) -> None:
    """Turns a network's large convolutions into ``Im2colConv2d`` in place; parameters and their names stay."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_suitable(module):
            module.__class__ = Im2colConv2d  # keeps the parameters


def _is_suitable(convolution: nn.Conv2d) -> bool:
    """1 x 1 convolutions are matmuls already."""
    return (
        convolution.weight.numel() >= MIN_WEIGHTS
        and math.prod(convolution.kernel_size) > 1
        and convolution.groups == 1
        and convolution.padding_mode == "zeros"
        and not isinstance(convolution.padding, str)
    )
