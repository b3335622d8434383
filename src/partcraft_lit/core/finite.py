"""Looks for NaN and infinity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def first_nonfinite(tensors: Mapping[str, Any]) -> str | None:
    """Name of the first tensor with NaN or infinity, or None; waits for the device once."""
    floats = {name: value for name, value in tensors.items() if isinstance(value, Tensor) and value.is_floating_point()}
    if not floats:
        return None
    finite = torch.stack([value.isfinite().all() for value in floats.values()]).tolist()
    return next((name for name, good in zip(floats, finite, strict=True) if not good), None)
