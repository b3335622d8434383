"""The figure of attention leakage: how much of each part's attention falls on each part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.plotting import encode_figure, style

#: Above this share the cell is bright, and its number dark.
_BRIGHT = 0.6


def save_leakage(path: Path, matrix: Tensor, part_names: Sequence[str], step: int) -> Path:
    """Writes the figure as a PNG; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"Attention of each part's tokens, step {step}"
    atomic_write(path, encode_figure(draw_leakage(matrix, part_names), "png", title, {"step": step}))
    return path


def draw_leakage(matrix: Tensor, part_names: Sequence[str]) -> Figure:
    """A heat map with its values; rows are the parts whose tokens attend, columns where they do.

    Args:
        matrix: (M + 1, M + 1) shares, see :func:`partcraft_lit.metrics.leakage.leakage_matrix`; a row may be NaN.
        part_names: names of all parts.
    """
    count = len(part_names)
    with style():
        figure = Figure(figsize=(1.6 + 0.55 * count, 1.3 + 0.5 * count), layout="constrained")
        axes = figure.subplots()
        axes.imshow(matrix.numpy(), cmap="magma", vmin=0, vmax=1)
        for row in range(count):
            for column in range(count):
                share = float(matrix[row, column])
                if share == share:
                    color = "black" if share > _BRIGHT else "white"
                    axes.text(column, row, f"{share:.2f}", ha="center", va="center", size=8, color=color)
        axes.set_xticks(range(count), part_names, rotation=30, ha="right")
        axes.set_yticks(range(count), part_names)
        axes.set(xlabel="attention inside the mask of", ylabel="token of")
        axes.grid(visible=False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure
