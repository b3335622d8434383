"""The page and the notebook run as they stand, on the shared run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def at_the_runs(tiny_run, tmp_path, monkeypatch):
    """A folder whose newest run is the shared one."""
    runs = tmp_path / "logs" / "train" / "runs"
    runs.mkdir(parents=True)
    (runs / tiny_run.name).symlink_to(tiny_run)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_runs(at_the_runs, capsys):
    names: dict[str, object] = {}
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs" / "python.md").read_text(encoding="utf-8"), re.M | re.S
    )
    for block in blocks:
        exec(block, names)
    assert (at_the_runs / "creature-1.png").is_file() and len(blocks) == 2
    assert "1 part1 3 #e69f00" in capsys.readouterr().out


def test_the_notebook_runs(at_the_runs, capsys):
    notebook = json.loads((ROOT / "examples" / "compose.ipynb").read_text(encoding="utf-8"))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []  # nothing of a machine is kept
            exec("".join(cell["source"]), names)
    assert (at_the_runs / "creature.png").is_file() and "partcraft generate" in capsys.readouterr().out
