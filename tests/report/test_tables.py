"""Tables as text."""

from __future__ import annotations

import csv
import io
import math

import pytest

from partcraft_lit.report.tables import Column, Entry, Table, csv_text, latex, markdown, short

NOTHING = Entry(math.nan, math.nan, math.nan)
TABLE = Table(
    title="losses",
    question="Which?",
    columns=[Column("EMR"), Column("FID", higher=False, key="fid@x")],
    rows={
        "a_b": [Entry(0.5, 0.4, 0.6, best=True, reported=0.46), Entry(12.3, math.nan, math.nan)],
        "c|d": [Entry(0.45, 0.35, 0.55, ties=True), NOTHING],
    },
    extra={"parameters": ["1,000", "–"]},
    notes=["n = 3"],
)


def test_markdown():
    lines = markdown(TABLE).splitlines()
    assert lines[:4] == ["# losses", "", "Which?", ""]
    assert lines[4] == "|  | EMR ↑ | EMR, paper | FID ↓ fid@x | parameters |"
    assert lines[6] == "| a_b | **0.500** [0.400, 0.600] | 0.460 | 12.3 | 1,000 |"
    assert lines[7] == r"| c\|d | 0.450 ≈ [0.350, 0.550] | – | – | – |"
    assert lines[-1] == "- n = 3"


def test_latex():
    text = latex(TABLE)
    assert r"\begin{tabular}{lrrrr}" in text and r"EMR $\uparrow$" in text and r"FID $\downarrow$" in text
    assert r"a\_b & \textbf{0.500} {\scriptsize$\pm$0.100} & 0.460 & 12.3 & 1,000 \\" in text
    assert r"0.450$^{\approx}$ {\scriptsize$\pm$0.100}" in text


def test_csv_keeps_commas_and_leaves_nothing_empty():
    text = csv_text(["row", "x"], [["a, b", math.nan], ["c", 0.1234567891], ["d", None]])
    assert list(csv.reader(io.StringIO(text))) == [["row", "x"], ["a, b", ""], ["c", "0.123457"], ["d", ""]]


@pytest.mark.parametrize(
    ("value", "text"), [(0.46, "0.460"), (12.345, "12.3"), (1234.5, "1,234"), (math.nan, "–"), (-0.5, "-0.500")]
)
def test_short(value, text):
    assert short(value) == text
