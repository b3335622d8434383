"""Figures of stored tables are drawn again from their summaries."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

from partcraft_lit.core.images import read_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", ["multi_concept", "species_mix"])
def test_a_figure_is_drawn_from_the_summary_alone(name, tmp_path, capsys):
    folder = tmp_path / name / "400_steps"
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "experiments" / name / "summary.csv", folder)
    runpy.run_path(str(ROOT / "tools" / "redraw_figures.py"))["main"]([str(folder)])
    assert read_image(folder / "figure.png").min() < 60
    assert (folder / "figure.svg").is_file()
    assert capsys.readouterr().out.strip() == str(folder / "figure.png")
