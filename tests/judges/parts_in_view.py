"""Images of one part, and questions about them."""

from __future__ import annotations

import torch

from partcraft_lit.judges.judge import Comparison, PartView


def view(color: tuple[int, int, int], part: int = 1, side: int = 32) -> PartView:
    """A grey square with a part of one colour in the middle."""
    image = torch.full((3, side, side), 200, dtype=torch.uint8)
    label_map = torch.zeros(8, 8, dtype=torch.uint8)
    label_map[3:5, 2:6] = part
    image[:, 3 * side // 8 : 5 * side // 8, side // 4 : 3 * side // 4] = torch.tensor(color, dtype=torch.uint8)[
        :, None, None
    ]
    return PartView(image, label_map)


def comparison(source: PartView, generated: PartView, part: int = 1, name: str = "wing") -> Comparison:
    return Comparison(part, name, "bird", source, generated)
