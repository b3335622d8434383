"""Features of a pass over all images, kept on disk for the next pass as far as a budget goes."""

from __future__ import annotations

import tempfile
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor


class FeatureSpool:
    """A temporary file of float32 tensors by index. What does not fit is forgotten and has to be computed again.

    Args:
        budget_bytes: most bytes written; 0 keeps nothing.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._left = budget_bytes
        self._file = tempfile.TemporaryFile(prefix="partcraft-features-")  # noqa: SIM115 closed by __exit__
        self._places: dict[int, tuple[int, torch.Size]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def put(self, index: int, features: Tensor) -> None:
        data = features.contiguous().numpy().tobytes()
        if len(data) > self._left:
            return
        try:
            offset = self._file.seek(0, 2)
            self._file.write(data)
            self._file.flush()
        except OSError:  # the disk is full: computing twice is slower, but right
            self._left = 0
            return
        self._left -= len(data)
        self._places[index] = (offset, features.shape)

    def get(self, index: int) -> Tensor | None:
        if index not in self._places:
            return None
        offset, shape = self._places[index]
        self._file.seek(offset)
        data = np.frombuffer(self._file.read(4 * shape.numel()), dtype=np.float32).copy()
        return torch.from_numpy(data).view(shape)
