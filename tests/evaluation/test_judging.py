"""Scores by judges, on drawn birds whose parts are known."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from partcraft_lit.commands.table.columns import Column, notes_on
from partcraft_lit.commands.table.settings import ColumnSettings
from partcraft_lit.commands.train.report import judge_tables
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import ABSENT
from partcraft_lit.core.visualization import save_png
from partcraft_lit.evaluation.calibration import PartCalibration
from partcraft_lit.evaluation.judging import ALL_IMAGES, REAL_IMAGES, JudgeScorer, unreadable
from partcraft_lit.metrics.composition import Targets

NAMES = ("background", "head", "wing")


class Images:
    """Six plain images; the number of one is its brightness."""

    class_noun = "bird"

    def __len__(self):
        return 6

    def image(self, index):
        return torch.full((3, 16, 16), index, dtype=torch.uint8)

    def content_hash(self, index):
        return str(index)


class ByBrightness:
    """Knows heads by the parity of the image, guesses at wings, and sees no background in image 9."""

    id, hash = "by brightness", "0"

    def __init__(self):
        self.asked = 0

    def __call__(self, comparisons):
        self.asked += len(comparisons)
        return torch.tensor([self._score(c) for c in comparisons], dtype=torch.float64)

    def _score(self, asked):
        one, other = (int(view.image[0, 0, 0]) for view in (asked.source, asked.generated))
        assert asked.noun == "bird" and asked.name == NAMES[asked.part]
        if not bool((asked.generated.label_map == asked.part).any()):
            return math.nan
        return 0.9 - 0.5 * ((one - other) % 2) if asked.part != 2 else 0.7


@pytest.fixture
def scorer(tmp_path):
    codes = (torch.arange(6) % 2)[:, None].expand(-1, 3).clone()
    label_map = torch.tensor([[0, 1], [2, 0]], dtype=torch.uint8)
    dictionary = SimpleNamespace(names=NAMES, retired=())
    match = {"head": 1, "wing": 2, "tail": None}
    return JudgeScorer(
        {"eye": ByBrightness()}, Images(), [label_map] * 6, codes, dictionary, 4, 0, match, Store(tmp_path / "store")
    )


def silent(*_):
    pass


def judged(scorer, folder, codes, sources, brightness, label_maps):
    paths = [folder / f"{index}.png" for index in range(len(brightness))]
    for path, value in zip(paths, brightness, strict=True):
        save_png(path, torch.full((3, 16, 16), value, dtype=torch.uint8))
    targets = Targets(torch.tensor(codes), torch.tensor(sources), tuple(range(len(codes))))
    return scorer.score(known(), targets, paths, label_maps, silent)


def known():
    readable, guessed = PartCalibration(1.0, 0.9, 0.4, 50, 50), PartCalibration(0.5, 0.7, 0.7, 50, 50)
    return {"eye": {0: readable, 1: readable, 2: guessed}}


def test_what_cannot_be_read_is_named_and_measured_once(scorer, tmp_path):
    calibrations = scorer.calibrate(silent)
    asked = scorer.judges["eye"].asked
    assert asked == 3 * 2 * 4
    metrics = scorer.calibration_metrics(calibrations)
    assert metrics["eye/auc/head"] == 1 and metrics["eye/same/head"] == pytest.approx(0.9)
    assert metrics["eye/different/head"] == pytest.approx(0.4)
    assert unreadable(metrics) == {"eye": {"wing": 0.5}}
    assert scorer.calibrate(silent) == calibrations and scorer.judges["eye"].asked == asked  # from the store
    scorer.judges["eye"].hash = "1"
    scorer.calibrate(silent)
    assert scorer.judges["eye"].asked == 2 * asked


def test_scores_of_images(scorer, tmp_path):
    whole, no_head = torch.tensor([[0, 1], [2, 0]]), torch.tensor([[0, 0], [2, 0]])
    found = judged(
        scorer,
        tmp_path,
        codes=[[0, 0, 0], [1, ABSENT, 1], [0, 0, 0]],
        sources=[[0, 1, 2], [1, 1, 1], [2, 2, 2]],
        brightness=[2, 3, 4],
        label_maps=[whole, whole, no_head],
    )
    first, second, third = found.rows
    assert first["judge/eye/background"] == pytest.approx(0.9) and first["judge/eye/head"] == pytest.approx(0.4)
    assert first["judge/eye/calibrated/background"] == pytest.approx(1)
    assert first["judge/eye/calibrated/head"] == pytest.approx(0, abs=1e-9)
    assert first["judge/eye/wing"] == pytest.approx(0.7) and math.isnan(first["judge/eye/calibrated/wing"])
    assert first["judge/eye/calibrated/all"] == pytest.approx(0.5)
    assert math.isnan(second["judge/eye/head"]) and math.isnan(second["judge/eye/calibrated/head"])  # not asked for
    assert second["judge/eye/calibrated/all"] == pytest.approx(1)
    assert math.isnan(third["judge/eye/head"]) and third["judge/eye/calibrated/head"] == 0  # asked for, and not there
    assert third["judge/eye/calibrated/without_background"] == 0
    metrics = found.metrics
    assert metrics["eye/head"] == pytest.approx(0.4) and metrics["eye/calibrated/head"] == pytest.approx(0, abs=1e-9)
    assert metrics["eye/calibrated/all"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert metrics["eye/seen"] == pytest.approx(7 / 8)


def test_agreement_with_the_oracle(scorer):
    rows = [
        {"judge/eye/head": 0.9, "judge/eye/calibrated/head": 1.0, "part_accuracy/head": 1.0},
        {"judge/eye/head": 0.8, "judge/eye/calibrated/head": 0.8, "part_accuracy/head": 0.0},
        {"judge/eye/head": 0.7, "judge/eye/calibrated/head": 0.6, "part_accuracy/head": 1.0},
        {"judge/eye/head": 0.4, "judge/eye/calibrated/head": 0.0, "part_accuracy/head": 0.0},
        {"judge/eye/head": math.nan, "judge/eye/calibrated/head": 0.0, "part_accuracy/head": 0.0},
        {"judge/eye/head": 0.1, "judge/eye/calibrated/head": 0.0, "part_accuracy/head": math.nan},
    ]
    found = scorer.agreement(rows)
    assert found["eye/agreement/head"] == pytest.approx(3 / 4)
    assert found["eye/agreement/all"] == pytest.approx(5 / 6)
    assert set(found) == {"eye/agreement/head", "eye/agreement/all"}
    assert scorer.agreement([{"judge/eye/head": 0.9}]) == {}


def test_the_report_has_a_table_for_each_judge(scorer, tmp_path):
    calibration = scorer.calibration_metrics(known())
    protocols = {"2 species": {"eye/head": 0.8, "eye/calibrated/head": 0.5, "eye/calibrated/all": 0.5, "eye/seen": 1.0}}
    [table] = judge_tables({REAL_IMAGES: calibration, **protocols, ALL_IMAGES: {"eye/agreement/all": 0.75}})
    assert table.judge == "eye" and table.unreadable == ["wing"] and table.auc["head"] == 1
    assert table.agreement == {"all": 0.75} and table.protocols == {"2 species": {"head": 0.5, "all": 0.5}}
    assert judge_tables({}) == []


def test_a_table_says_which_parts_its_judge_cannot_read():
    column = Column("head", "", ColumnSettings(metric="judge/eye/calibrated/head", protocols=("2 species",)))
    numbers = [
        {"judge/eye/readable/wing@real_images": 0.0, "judge/eye/readable/head@real_images": value}
        for value in (0.0, 1.0)
    ]
    runs = [[SimpleNamespace(numbers=of_run, rows=[])] for of_run in numbers]
    [note] = notes_on([column], runs)
    assert "wing (all runs), head (1 of 2 runs)" in note and note.startswith("eye:")
    assert notes_on([Column("EMR", "", ColumnSettings(metric="emr/all", protocols=("2 species",)))], runs) == []
