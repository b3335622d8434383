"""Frozen linear layers in fewer bits, by torchao."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from partcraft_lit.core.errors import UserError

#: "int8": weights as integers with a scale per row, computed with in the original dtype.
Quantization = Literal["int8"]

_BYTES = {"int8": 1.0}


def bytes_per_weight(dtype: torch.dtype, quantize: Quantization | None) -> float:
    """Of networks whose weights are all but all those of linear layers."""
    return _BYTES[quantize] if quantize is not None else float(dtype.itemsize)


def require(quantize: Quantization) -> None:
    """Checks that the package for it is there.

    Raises:
        UserError: if it is not.
    """
    if importlib.util.find_spec("torchao") is None:
        raise UserError(
            f"backbone.quantize={quantize} wants the package torchao: pip install 'partcraft-lit[quantize]', or set "
            "backbone.quantize=null."
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
