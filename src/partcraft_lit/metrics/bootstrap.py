"""Bootstrap confidence intervals over training seeds and images.

Ours rather than scipy.stats.bootstrap, which resamples one axis: seeds and images are nested. Values
come as one list per training seed, with one number per image in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from partcraft_lit.core.randomness import numpy_generator

Values = Sequence[Sequence[float]]


class Interval(NamedTuple):
    """A mean and the bounds of its confidence interval; the bounds are NaN where a single number was measured."""

    mean: float
    low: float
    high: float


def interval(values: Values, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean, over seeds and then over images.

    The mean is that of the seeds' means: every seed counts alike. Each resample draws seeds with replacement, then
    images. Where all seeds have the same number of images, place i is taken to be the same image under each of them,
    and one draw of images serves them all: what makes an image hard does not average out over seeds. Otherwise each
    seed draws its own.

    With one seed the interval covers new images only, not new trainings. With two or three seeds it is somewhat
    too narrow, as every bootstrap of so few is.

    Args:
        values: one list per seed, one finite number per image.
        level: share of intervals that should hold the true mean, 0...1.
        resamples: how often to draw.
        seed: of the draws. Equal for two methods of one shape, so that their intervals move together.

    Raises:
        ValueError: if a list is empty, a number not finite, or ``level`` or ``resamples`` out of range.

    Source: Owen, "The pigeonhole bootstrap" (2007), for the shared draw.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}.")
    rows = checked("values", values)
    mean = float(np.mean([row.mean() for row in rows]))
    if sum(len(row) for row in rows) == 1:
        return Interval(mean, float("nan"), float("nan"))
    low, high = np.quantile(_resampled_means(rows, resamples, seed), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high))


def _resampled_means(rows: list[NDArray[np.float64]], resamples: int, seed: int) -> NDArray[np.float64]:
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}.")
    generator = numpy_generator(seed, "bootstrap")
    means = np.empty(resamples)
    if len({len(row) for row in rows}) == 1:
        table = np.stack(rows)  # (seeds, images)
        for index in range(resamples):
            chosen = table[generator.integers(len(rows), size=len(rows))]
            images = generator.integers(table.shape[1], size=table.shape[1])
            means[index] = chosen.mean(axis=0)[images].mean()
        return means
    for index in range(resamples):
        chosen_rows = [rows[place] for place in generator.integers(len(rows), size=len(rows))]
        means[index] = np.mean([row[generator.integers(len(row), size=len(row))].mean() for row in chosen_rows])
    return means


def checked(name: str, values: Values) -> list[NDArray[np.float64]]:
    """One array per seed.

    Raises:
        ValueError: if a list is empty or a number not finite.
    """
    rows = [np.asarray(row, dtype=np.float64) for row in values]
    if not rows or any(row.ndim != 1 or not len(row) for row in rows):
        raise ValueError(f"{name} must hold one list per seed and at least one number in each.")
    for index, row in enumerate(rows):
        if not np.isfinite(row).all():
            place = int(np.flatnonzero(~np.isfinite(row))[0])
            raise ValueError(f"{name}[{index}][{place}] is {row[place]}: a mean needs finite numbers.")
    return rows
