"""The map of a run's learnt tokens: ``token_space.png``, coloured by part, and how well parts keep together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from partcraft_lit.core.plotting import line_style, save_figure, style
from partcraft_lit.core.visualization import hex_color, part_colors
from partcraft_lit.metrics.token_space import silhouette, tsne

FILE_NAME = "token_space.png"
SILHOUETTE = "tokens/silhouette"
#: Beyond this many tokens the map takes longer than it is worth.
_MOST_TOKENS = 2500


@torch.no_grad()
def write_token_space(folder: Path, baked: Tensor, codes_per_part: Sequence[int], names: Sequence[str]) -> float:
    """Draws the map, as PNG and SVG, and computes the silhouette by part.

    Args:
        folder: of the run.
        baked: (M + 1, K, width) tokens; a part with fewer codes than K fills its first rows.
        codes_per_part: codes of each part.
        names: of the parts.

    Returns:
        Silhouette by part; NaN where there are too few tokens, and then there is no map.
    """
    parts = torch.cat([torch.full((count,), part) for part, count in enumerate(codes_per_part)])
    tokens = torch.cat([baked[part, :count].float().cpu() for part, count in enumerate(codes_per_part)])
    if len(tokens) < 4 or len(parts.unique()) < 2 or not bool(tokens.isfinite().all()):
        return float("nan")
    score = silhouette(tokens, parts)
    if len(tokens) <= _MOST_TOKENS:
        title = f"{len(tokens)} tokens, silhouette by part {score:.2f}"
        save_figure(folder / FILE_NAME, draw_map(tsne(tokens), parts, names, title), title, {"silhouette": score})
    return score


def draw_map(places: Tensor, parts: Tensor, names: Sequence[str], title: str) -> Figure:
    """A scatter plot of (N, 2) places, with a colour and a marker for each part of (N,) parts."""
    colors = part_colors(len(names))
    with style():
        figure = Figure(figsize=(3.6, 4.0), layout="constrained")
        axes = figure.subplots()
        for part, name in enumerate(names):
            x, y = places[parts == part].T
            looks = line_style(part) | {"color": hex_color(colors[part]), "linestyle": ""}
            axes.plot(x, y, label=name, **looks)
        axes.set_title(title, size=10)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set(xticks=[], yticks=[])
        axes.margins(0.06)
        axes.spines[:].set_visible(False)
        figure.legend(loc="outside lower left", ncols=3, handlelength=1, columnspacing=1)
    return figure
