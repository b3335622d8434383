"""The map of a run's tokens."""

from __future__ import annotations

import math

import torch

from partcraft_lit.callbacks.metrics_log import read_metrics
from partcraft_lit.core.images import read_image
from partcraft_lit.evaluation.token_space import write_token_space


def test_only_codes_that_exist_are_on_the_map(tmp_path):
    baked = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    baked[2, 2:] = torch.nan  # rows of no code
    score = write_token_space(tmp_path, baked, (4, 3, 2), ("background", "head", "wing"))
    assert -1 <= score <= 1
    image = read_image(tmp_path / "token_space.png")
    assert image.shape[2] > 500 and image.min() < 100
    assert (tmp_path / "token_space.svg").is_file()


def test_too_few_tokens_have_no_map(tmp_path):
    assert math.isnan(write_token_space(tmp_path, torch.ones(2, 1, 8), (1, 1), ("background", "subject")))
    assert not (tmp_path / "token_space.png").exists()


def test_every_run_has_one(tiny_run):
    assert (tiny_run / "token_space.png").exists()
    assert -1 <= read_metrics(tiny_run / "metrics.jsonl")["tokens/silhouette"][-1][1] <= 1
