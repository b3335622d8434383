"""What the verbs do, on typed objects."""

from __future__ import annotations

from partcraft_lit.run.discovering import discover
from partcraft_lit.run.exporting import export
from partcraft_lit.run.fetching import fetch
from partcraft_lit.run.generating import generate
from partcraft_lit.run.merging import merge
from partcraft_lit.run.pretraining import pretrain
from partcraft_lit.run.scoring import evaluate, verify
from partcraft_lit.run.table import compare_rows, verify_table
from partcraft_lit.run.training import train

__all__ = [
    "compare_rows",
    "discover",
    "evaluate",
    "export",
    "fetch",
    "generate",
    "merge",
    "pretrain",
    "train",
    "verify",
    "verify_table",
]
