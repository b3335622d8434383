"""Frozen linear layers in fewer bits, by torchao."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import torch
from torch import nn

from partcraft_lit.backbones.settings import Quantization
from partcraft_lit.core.errors import UserError


def bytes_of(network: nn.Module, dtype: torch.dtype, quantize: Quantization | None) -> int:
    """Bytes of a network's weights; of a quantized one without the scales, a thousandth."""
    linear = sum(part.weight.numel() for part in network.modules() if isinstance(part, nn.Linear))
    others = sum(weight.numel() for weight in network.parameters()) - linear
    return linear * (1 if quantize == "int8" else dtype.itemsize) + others * dtype.itemsize


def require(quantize: Quantization) -> None:
    """Checks that the package for it is there.

    Raises:
        UserError: if it is not.
    """
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            f"backbone.quantize={quantize} needs the package torchao: pip install 'partcraft-lit[quantize]', or set "
            "hardware.quantize=null."
        )


def quantize_linear(networks: Iterable[nn.Module], quantize: Quantization) -> None:
    """Quantizes the weights of all linear layers in place, where they are; adapters come after.

    Args:
        networks: frozen.
        quantize: to what.

    Raises:
        UserError: if the package for it is not there.
    """
    require(quantize)
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    for network in networks:
        quantize_(network, Int8WeightOnlyConfig())
        network.requires_grad_(False)
