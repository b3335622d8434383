"""The map of a run's learnt tokens: ``token_space.png``, coloured by part, and how well parts keep together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from partcraft_lit.core.visualization import WHITE, from_pil, hex_color, label, legend, part_colors, save_png, stack
from partcraft_lit.metrics.token_space import silhouette, tsne

FILE_NAME = "token_space.png"
SILHOUETTE = "tokens/silhouette"
_SIDE = 560
_SCALE = 2
_MARGIN = 26
_RADIUS = 6
#: Beyond this many tokens the map takes longer than it is worth.
_MOST_TOKENS = 2500


@torch.no_grad()
def write_token_space(folder: Path, baked: Tensor, codes_per_part: Sequence[int], names: Sequence[str]) -> float:
    """Draws the map and computes the silhouette by part.

    Args:
        folder: of the run.
        baked: (M + 1, K, width) tokens; a part with fewer codes than K fills its first rows.
        codes_per_part: codes of each part.
        names: of the parts.

    Returns:
        Silhouette by part; NaN where there are too few tokens, and then there is no image.
    """
    parts = torch.cat([torch.full((count,), part) for part, count in enumerate(codes_per_part)])
    tokens = torch.cat([baked[part, :count].float().cpu() for part, count in enumerate(codes_per_part)])
    if len(tokens) < 4 or len(parts.unique()) < 2 or not bool(tokens.isfinite().all()):
        return float("nan")
    score = silhouette(tokens, parts)
    if len(tokens) <= _MOST_TOKENS:
        image = draw_map(tsne(tokens), parts, names, f"{len(tokens)} tokens, silhouette by part {score:.2f}")
        save_png(folder / FILE_NAME, image, {"silhouette": score})
    return score


def draw_map(places: Tensor, parts: Tensor, names: Sequence[str], title: str) -> Tensor:
    """(N, 2) places and (N,) parts -> an image with a legend."""
    colors = part_colors(len(names))
    side = _SIDE * _SCALE
    low, high = places.min(dim=0).values, places.max(dim=0).values
    scaled = (places - low) / (high - low).max().clamp_min(1e-12)
    scaled = scaled + (1 - (scaled.max(dim=0).values)) / 2
    at = (_MARGIN * _SCALE + scaled * (side - 2 * _MARGIN * _SCALE)).tolist()
    canvas = Image.new("RGB", (side, side), WHITE)
    draw = ImageDraw.Draw(canvas)
    radius = _RADIUS * _SCALE
    for (x, y), part in zip(at, parts.tolist(), strict=True):
        box = (x - radius, y - radius, x + radius, y + radius)
        draw.ellipse(box, fill=hex_color(colors[part]), outline=WHITE, width=_SCALE)
    small = from_pil(canvas.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))
    return stack([label(small, title, "above", size=15), legend(names, colors, _SIDE)], pad=4, border=8)
