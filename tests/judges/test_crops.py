"""Crops and their cosines."""

from __future__ import annotations

import math

import pytest
import torch
from parts_in_view import comparison, view

from partcraft_lit.core.errors import UserError
from partcraft_lit.judges.crops import CropJudge
from partcraft_lit.metrics.features import PixelFeatures


class MeanColor:
    """An image network that answers with the mean colour of the middle."""

    id, dim = "mean-color", 3

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        middle = images[..., images.shape[-2] // 2 - 1 : images.shape[-2] // 2 + 1, :].float()
        return self.factor * middle.mean(dim=(2, 3))


def test_the_score_is_the_cosine_of_the_crops():
    judge = CropJudge(MeanColor(), side=16, margin=0.0, fade=0.0, batch_size=2)
    red, yellow, blue = view((200, 0, 0)), view((200, 200, 0)), view((0, 0, 200))
    scores = judge([comparison(red, red), comparison(red, yellow), comparison(red, blue)])
    assert scores.dtype == torch.float64
    assert scores.tolist() == pytest.approx([1, math.sqrt(0.5), 0], abs=1e-6)
    negative = CropJudge(MeanColor(-1.0), side=16)
    assert float(negative([comparison(red, red)])) == pytest.approx(1)


def test_a_part_that_is_not_in_sight_has_no_score():
    judge = CropJudge(PixelFeatures(4), side=16)
    red = view((200, 0, 0))
    scores = judge([comparison(red, view((200, 0, 0), part=2)), comparison(red, red)])
    assert scores[0].isnan() and float(scores[1]) == pytest.approx(1)
    assert judge([]).shape == (0,)


def test_the_hash_is_of_the_network_and_the_settings():
    hashes = {
        CropJudge(PixelFeatures(4)).hash,
        CropJudge(PixelFeatures(5)).hash,
        CropJudge(PixelFeatures(4), fade=0.25).hash,
        CropJudge(PixelFeatures(4), side=32).hash,
    }
    assert len(hashes) == 4
    assert CropJudge(PixelFeatures(4), batch_size=2).hash in hashes


def test_a_network_without_numbers_is_refused():
    with pytest.raises(UserError, match="not finite"):
        CropJudge(MeanColor(math.nan))
