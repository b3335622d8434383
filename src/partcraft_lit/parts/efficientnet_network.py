"""EfficientNet-Lite0, written from the published architecture; runs the published ImageNet weights."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

#: Per stage: output channels, kernel, stride of its first block, expansion of the depthwise width, blocks.
STAGES = (
    (16, 3, 1, 1, 1),
    (24, 3, 2, 6, 2),
    (40, 5, 2, 6, 2),
    (80, 3, 2, 6, 3),
    (112, 5, 1, 6, 3),
    (192, 5, 2, 6, 4),
    (320, 3, 1, 6, 1),
)
STEM, HEAD, CLASSES = 32, 1280, 1000
_EPS = 1e-3


class EfficientNetLite0(nn.Module):
    """The convolutional network of 4.7 M weights: ReLU6, no squeeze-and-excitation, paddings as in TensorFlow.

    Modules carry the names of the published state dict, so that it loads strictly.

    Source: Tan and Le, "EfficientNet", ICML 2019, table 1, with the changes of EfficientNet-Lite (TensorFlow, 2020).
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = _SameConv(3, STEM, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(STEM, eps=_EPS)
        blocks: list[_InvertedResidual] = []
        width = STEM
        for channels, kernel, stride, expansion, repeats in STAGES:
            for index in range(repeats):
                blocks.append(_InvertedResidual(width, channels, kernel, stride if index == 0 else 1, expansion))
                width = channels
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(width, HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(HEAD, eps=_EPS)
        self._fc = nn.Linear(HEAD, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """(B, 3, H, W) in about -1...1 -> (B, 1000) ImageNet logits."""
        (last,) = self.stages(pixel_values, (len(STAGES) - 1,))
        return self._fc(F.relu6(self._bn1(self._conv_head(last))).mean(dim=(2, 3)))

    def stages(self, pixel_values: Tensor, wanted: Sequence[int]) -> list[Tensor]:
        """Outputs of the stages with these indices into ``STAGES``, in ascending order: (B, C, h, w) each."""
        x = F.relu6(self._bn0(self._conv_stem(pixel_values)))
        found: list[Tensor] = []
        blocks = iter(self._blocks)
        for stage, (*_, repeats) in enumerate(STAGES[: max(wanted) + 1]):
            for _ in range(repeats):
                x = next(blocks)(x)
            if stage in wanted:
                found.append(x)
        return found


class _InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, linear 1x1 projection; the input is added where shapes allow it."""

    def __init__(self, width: int, channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = width * expansion
        if expansion > 1:
            self._expand_conv = nn.Conv2d(width, hidden, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(hidden, eps=_EPS)
        self._depthwise_conv = _SameConv(hidden, hidden, kernel, stride=stride, groups=hidden)
        self._bn1 = nn.BatchNorm2d(hidden, eps=_EPS)
        self._project_conv = nn.Conv2d(hidden, channels, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(channels, eps=_EPS)
        self.expands = expansion > 1
        self.residual = stride == 1 and width == channels

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = F.relu6(self._bn1(self._depthwise_conv(hidden)))
        projected = self._bn2(self._project_conv(hidden))
        return x + projected if self.residual else projected


class _SameConv(nn.Conv2d):
    """Pads as TensorFlow's "SAME": an odd padding has its larger half at the bottom and on the right."""

    def __init__(self, width: int, channels: int, kernel: int, stride: int, groups: int = 1) -> None:
        super().__init__(width, channels, kernel, stride=stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        down, right = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
        return super().forward(F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2)))
