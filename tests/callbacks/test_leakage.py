from __future__ import annotations

import torch
from PIL import Image

from partcraft_lit.callbacks.leakage import draw_leakage, save_leakage


def test_the_matrix_is_drawn_with_its_shares_and_without_what_no_prompt_names(tmp_path):
    matrix = torch.tensor([[0.75, 0.25, 0.0], [0.1, 0.9, 0.0], [torch.nan] * 3], dtype=torch.float64)
    (axes,) = draw_leakage(matrix, ["background", "head", "wing"]).axes
    shown = [text.get_text() for text in axes.texts]
    assert shown == ["0.75", "0.25", "0.00", "0.10", "0.90", "0.00"]
    path = save_leakage(tmp_path / "attention_leakage" / "step_000010.png", matrix, ["background", "head", "wing"], 10)
    with Image.open(path) as image:
        assert image.info["step"] == "10"
    first = path.read_bytes()
    save_leakage(path, matrix, ["background", "head", "wing"], 10)
    assert path.read_bytes() == first
