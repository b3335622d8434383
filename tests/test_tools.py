from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[1] / "tools"


def test_a_tool_whose_output_nobody_reads_ends_quietly():
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, str(TOOLS / "stats.py")], stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.fixture
def paper(tmp_path, monkeypatch):
    """The tool that builds the paper, with a page of its own."""
    spec = importlib.util.spec_from_file_location("build_paper", TOOLS / "build_paper.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "PAGE", tmp_path / "paper.md")
    return tool


def test_the_paper_has_the_numbers_of_the_experiments(paper):
    page = TOOLS.parent / "docs" / "paper.md"
    assert paper.render() == page.read_text(encoding="utf-8"), "run python tools/build_paper.py"


def test_a_page_that_is_out_of_date_is_told(paper, capsys):
    assert paper.main(["--check"]) == 1 and "run python tools/build_paper.py" in capsys.readouterr().err
    assert paper.main([]) == 0 and paper.main(["--check"]) == 0
    paper.PAGE.write_text(paper.PAGE.read_text().replace("## Abstract", "## Summary"))
    assert paper.main(["--check"]) == 1


def test_a_cell_that_is_not_there_is_no_dash(paper):
    with pytest.raises(SystemExit, match=r"lambda_attn has no cell \(2, EMR\)"):
        paper.cell("lambda_attn", "2", "EMR")
    with (TOOLS.parent / "experiments" / "reconstruction" / "summary.csv").open(newline="") as lines:
        line = next(line for line in csv.DictReader(lines) if (line["row"], line["column"]) == ("partcraft", "EMR"))
    mean, low, high = (float(line[key]) for key in ("mean", "low", "high"))
    assert paper.cell("reconstruction", "partcraft", "EMR") == f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    assert paper.value("reconstruction", "partcraft", "FID") == paper.value(
        "reconstruction", "partcraft", "FID (fid@mini-features)"
    )
