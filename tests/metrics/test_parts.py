"""EMR and CoSim: by hand, with a predictor whose answers are written into the images."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from partcraft_lit.core.types import ABSENT, PartPrediction
from partcraft_lit.metrics.cosim import CosineSimilarity
from partcraft_lit.metrics.emr import ExactMatchingRate
from partcraft_lit.metrics.parts import PartMetric


class WrittenPredictor:
    """Reads codes from the first pixels of the first row; 255 is absent. Centroid of code k: angle 60 degrees x k."""

    num_parts = 2

    def __init__(self) -> None:
        self.calls = 0

    def predict(self, images: Sequence[Tensor]) -> PartPrediction:
        self.calls += 1
        codes = torch.stack([image[0, 0, :3].long() for image in images])
        codes[codes == 255] = ABSENT
        return PartPrediction(codes, [], torch.zeros(len(images), 3, 2))

    def centroids(self, codes: Tensor) -> Tensor:
        angle = codes.double() * math.pi / 3
        # Of unlike lengths: only the direction may count.
        vectors = torch.stack([angle.cos(), angle.sin()], dim=-1) * (1 + codes[..., None].abs())
        return torch.where(codes[..., None] == ABSENT, 0.0, vectors)


def read(codes: list[list[int]]) -> PartPrediction:
    return WrittenPredictor().predict(write(codes))


def write(codes: list[list[int]], size: tuple[int, int] = (4, 5)) -> list[Tensor]:
    images = []
    for row in codes:
        image = torch.zeros(3, *size, dtype=torch.uint8)
        image[0, 0, :3] = torch.tensor([255 if code == ABSENT else code for code in row])
        images.append(image)
    return images


FOUND = [[0, 1, 2], [0, ABSENT, ABSENT], [3, 1, 0]]
ASKED = [[0, 2, 2], [1, ABSENT, 2], [0, 1, ABSENT]]
#: By hand: the same; 60 degrees apart; the same / 60 degrees apart; both absent; not found / opposite; same; unasked.
EMR = [[1, 0, 1], [0, 1, 0], [0, 1, 0]]
COSIM = [[1, 0.5, 1], [0.5, 1, 0], [-1, 1, 0]]


@pytest.mark.parametrize(("metric", "table"), [(ExactMatchingRate, EMR), (CosineSimilarity, COSIM)])
def test_scores_by_hand(metric: type[PartMetric], table: list[list[float]]) -> None:
    scorer = metric(WrittenPredictor(), part_names=["background", "head", "wing"])
    scorer.update(write(FOUND[:1]), torch.tensor(ASKED[:1]))  # in batches of unlike sizes
    scorer.update(write(FOUND[1:], size=(9, 3)), torch.tensor(ASKED[1:]))
    expected = torch.tensor(table, dtype=torch.float64)
    result = scorer.compute()
    assert list(result) == ["all", "without_background", "part/background", "part/head", "part/wing"]
    torch.testing.assert_close(result["all"], expected.mean())
    torch.testing.assert_close(result["without_background"], expected[:, 1:].mean())
    torch.testing.assert_close(torch.stack(list(result.values())[2:]), expected.mean(dim=0))


@pytest.mark.parametrize("metric", [ExactMatchingRate, CosineSimilarity])
def test_a_perfect_answer_scores_one_with_absent_parts_too(metric: type[PartMetric]) -> None:
    scorer = metric(WrittenPredictor())
    codes = [[0, 1, 2], [ABSENT, ABSENT, ABSENT], [5, ABSENT, 0]]
    scorer.update(write(codes), torch.tensor(codes))
    torch.testing.assert_close(torch.stack(list(scorer.compute().values())), torch.ones(5, dtype=torch.float64))


@pytest.mark.parametrize("metric", [ExactMatchingRate, CosineSimilarity])
def test_order_batches_and_processes_do_not_matter(metric: type[PartMetric], two_processes: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    found, asked = torch.randint(ABSENT, 6, (2, 9, 3), generator=generator)

    def work(rank: int, step: int = 2, size: int = 2) -> dict[str, torch.Tensor]:
        scorer = metric(WrittenPredictor())
        for piece in torch.arange(rank, 9, step).split(size):
            scorer.update(write(found[piece].tolist()), asked[piece])
        return scorer.compute()

    expected = work(0, 1, 9)
    backwards = metric(WrittenPredictor())
    backwards.update(write(found.flip(0).tolist()), asked.flip(0))
    for result in (work(0, 1, 4), backwards.compute(), *two_processes(work)):
        torch.testing.assert_close(result, expected)


def test_what_is_added_after_a_result_changes_the_next_one() -> None:
    scorer = ExactMatchingRate(WrittenPredictor())
    scorer.update(read(FOUND[:1]), torch.tensor(ASKED[:1]))
    before = float(scorer.compute()["all"])
    scorer.update(read(FOUND[1:]), torch.tensor(ASKED[1:]))
    assert float(scorer.compute()["all"]) != before


def test_both_metrics_read_a_picture_only_once() -> None:
    predictor = WrittenPredictor()
    prediction = predictor.predict(write(FOUND))
    for metric in (ExactMatchingRate(predictor), CosineSimilarity(predictor)):
        metric.update(prediction, torch.tensor(ASKED))
    assert predictor.calls == 1


def test_reset_forgets() -> None:
    scorer = ExactMatchingRate(WrittenPredictor())
    scorer.update(read(FOUND), torch.tensor(ASKED))
    scorer.reset()
    assert scorer.num_images == 0
    assert scorer.part_sums.sum() == 0


def test_copies_share_the_predictor_and_not_the_state() -> None:
    scorer = ExactMatchingRate(WrittenPredictor())
    copied = copy.deepcopy(scorer)
    assert copied.predictor is scorer.predictor
    copied.update(read(FOUND), torch.tensor(ASKED))
    assert scorer.num_images == 0


def test_both_work_in_a_collection() -> None:
    predictor = WrittenPredictor()
    both = MetricCollection({"emr": ExactMatchingRate(predictor), "cosim": CosineSimilarity(predictor)})
    both.update(write(FOUND), torch.tensor(ASKED))
    values = both.compute()
    expected = torch.tensor(EMR, dtype=torch.float64).mean(), torch.tensor(COSIM, dtype=torch.float64).mean()
    assert sorted(round(float(value), 9) for key, value in values.items() if key.endswith("all")) == sorted(
        round(float(value), 9) for value in expected
    )


def test_mistakes_are_named() -> None:
    scorer = ExactMatchingRate(WrittenPredictor())
    with pytest.raises(
        ValueError, match=r"found codes must be integers of shape \(2, 3\), one row per image; got \(3, 3\)"
    ):
        scorer.update(write(FOUND), torch.tensor(ASKED[:2]))
    with pytest.raises(ValueError, match=r"target_codes must be integers of shape \(3, 3\), .* got \(3, 2\)"):
        scorer.update(read(FOUND), torch.tensor(ASKED)[:, :2])
    with pytest.raises(ValueError, match=r"target_codes must be integers .* torch.float32"):
        scorer.update(read(FOUND), torch.tensor(ASKED).float())
    assert scorer.num_images == 0
    with pytest.raises(ValueError, match=r"name all 3 parts, background first; got 2: \['head', 'wing'\]"):
        ExactMatchingRate(WrittenPredictor(), part_names=["head", "wing"])
