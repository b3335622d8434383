"""How fast training goes."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable

from partcraft_lit.core.types import TrainingBatch


class Rate:
    """Images per second over the last batches.

    The median time from batch to batch: sampling, validation and saving, which stretch a few batches, do not distort
    it.

    Args:
        window: number of batches.
        clock: seconds; for tests.
    """

    def __init__(self, window: int = 51, clock: Callable[[], float] = time.perf_counter) -> None:
        self._times: deque[float] = deque(maxlen=window)
        self._clock = clock
        self._previous: float | None = None
        self._images = 0

    def start(self) -> None:
        self._times.clear()
        self._previous = self._clock()

    def batch_done(self, images: int) -> None:
        now = self._clock()
        if self._previous is not None:
            self._times.append(now - self._previous)
        self._previous, self._images = now, images

    @property
    def images_per_second(self) -> float | None:
        """None before the first batch."""
        typical = statistics.median(self._times) if self._times else 0.0
        return self._images / typical if typical > 0 else None


def count_images(batch: object, world_size: int = 1) -> int:
    """Images in a batch, over all processes."""
    return len(batch.image_ids) * world_size if isinstance(batch, TrainingBatch) else 0
