"""A table to the loggers: W&B offline, one that takes numbers only, one that fails."""

from __future__ import annotations

import json
import math

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from partcraft_lit.commands.table.comparison import Cell
from partcraft_lit.commands.table.log import log_table
from partcraft_lit.core.visualization import save_png
from partcraft_lit.loggers import wandb_logger
from partcraft_lit.metrics.paired import Difference

NOTHING = Cell(math.nan, math.nan, math.nan, 0, 0)
CELLS = {
    "EMR": {
        "a": Cell(0.5, 0.4, 0.6, 3, 24, best=True, reported=0.46),
        "b": Cell(0.4, 0.3, 0.5, 3, 24, difference=Difference(-0.1, -0.3, math.nan, -0.9, 0.2, 3), p_corrected=0.4),
    },
    "FID (fid@tf-299)": {"a": Cell(12.5, 12.0, 13.0, 3, 1, best=True), "b": NOTHING},
}


@pytest.fixture
def folder(tmp_path):
    save_png(tmp_path / "figure.png", torch.zeros(3, 8, 8, dtype=torch.uint8), {})
    return tmp_path


def test_wandb_keeps_table_cells_and_figure(folder, monkeypatch):
    monkeypatch.delenv("WANDB_MODE", raising=False)
    log_table([wandb_logger(folder, project="p", mode="offline")], folder, CELLS, {"hash": "abc"})
    files = next(folder.glob("wandb/offline-run-*/files"))
    (table,) = files.glob("media/table/table_*.json")
    assert json.loads(table.read_text()) == {
        "columns": ["row", "EMR", "FID (fid@tf-299)"],
        "data": [["a", 0.5, 12.5], ["b", 0.4, None]],
    }
    (cells,) = files.glob("media/table/cells_*.json")
    rows = json.loads(cells.read_text())["data"]
    assert rows[0] == ["a", "EMR", 0.5, 0.4, 0.6, 3, 24, True, False, None, None, None, None, None, None, 0.46, None]
    (other,) = [row for row in rows if row[:2] == ["b", "EMR"]]
    assert other[7:] == [False, False, -0.1, -0.3, None, -0.9, 0.2, 0.4, None, None]
    assert len(list(files.glob("media/images/figure_*.png"))) == 1
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))


def test_a_logger_without_tables_and_one_that_fails(folder, tmp_path):
    class Broken(CSVLogger):
        def log_hyperparams(self, *args, **kwargs):
            raise ConnectionError("no route")

    with pytest.warns(UserWarning, match=r"did not reach Broken: no route"):
        log_table([Broken(tmp_path), CSVLogger(tmp_path, name="csv")], folder, CELLS, {"hash": "abc"})
    assert "hash: abc" in (tmp_path / "csv" / "version_0" / "hparams.yaml").read_text()
