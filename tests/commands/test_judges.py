"""Judges of parts, from the command line."""

from __future__ import annotations

import json
import math

import pytest

from partcraft_lit.commands.train.logs import headline
from partcraft_lit.evaluation.image_scores import read_judges, read_rows

#: A judge that needs no weights.
JUDGE = ("eval.judge=[crops]", "judges.crops.features=pixels", "judges.crops.side=16", "eval.judge_pairs=4")


def test_a_run_that_stands_is_judged_and_still_verified(tiny_run, new_workshop):
    workshop = new_workshop()
    run = workshop.copy(tiny_run)
    pictures = sorted((run / "evaluation").glob("*/*.png"))
    times = [path.stat().st_mtime_ns for path in pictures]
    ended = workshop("evaluate", *JUDGE, f"run={run}")
    assert ended.code == 0, ended.out
    assert "judges, real images: crops/auc/" in ended.out
    assert [path.stat().st_mtime_ns for path in pictures] == times  # nothing is drawn again
    evaluation = run / "evaluation"
    assert read_judges(evaluation) == ["crops"]
    scores = json.loads((evaluation / "scores.json").read_text())
    rows = read_rows(evaluation / "scores.csv")
    for part in ("background", "part1", "part2"):
        of_part = [row[f"judge/crops/{part}"] for row in rows if row["protocol"] == "2 species"]
        known = [value for value in of_part if not math.isnan(value)]
        stored = scores[f"judge/crops/{part}@2_species"]
        assert stored == pytest.approx(sum(known) / len(known), abs=1e-5) if known else stored is None
        assert scores[f"judge/crops/readable/{part}@real_images"] in (0, 1)
    assert 0 <= scores["judge/crops/seen@reconstruction"] <= 1
    ended = workshop("evaluate", "verify=true", f"run={run}")
    assert ended.code == 0 and "not verified" in ended.out and "6 images read again: every number" in ended.out, (
        ended.out
    )
    assert workshop("evaluate", f"run={run}").code == 0
    assert read_judges(evaluation) == [] and "judge/" not in (evaluation / "scores.json").read_text()


def test_a_training_run_ends_with_them(new_workshop):
    workshop = new_workshop()
    run = workshop.train(*JUDGE, "trainer.max_steps=1", "objective=judge/crops/seen@reconstruction")
    scores = json.loads((run / "scores.json").read_text())
    assert "judge/crops/auc/part1@real_images" in scores
    assert "<h2>Judges</h2>" in (run / "report.html").read_text()
    assert json.loads((run / "finished.json").read_text())["objective"] == {
        "judge/crops/seen@reconstruction": scores["judge/crops/seen@reconstruction"]
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("eval.judge=[crop]",), "eval.judge=crop"),
        (("eval.judge=[crops]", "judges.crops.features=minni"), "judges.crops.features=minni"),
        (("eval.judge=[crops]", "judges.crops.fade=2"), "judges.crops.fade"),
        (("eval.judge=[vlm]", "judges.vlm.source=qwen3_vl"), "is not a folder, a hub id"),
        (("eval.judge=[vlm]", "judges.vlm.source={empty}"), "could not be read"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(tiny_run, new_workshop, tmp_path, monkeypatch, given, message):
    workshop = new_workshop()
    run = workshop.copy(tiny_run)
    monkeypatch.setattr(
        "partcraft_lit.commands.evaluate.evaluate.load_trained", lambda *_: pytest.fail("the model was loaded")
    )
    ended = workshop("evaluate", *(text.format(empty=tmp_path) for text in given), f"run={run}")
    assert ended.code == 2 and message in ended.out and "Traceback" not in ended.out, ended.out


def test_loggers_hear_of_all_parts_together():
    scores = {
        "judge/crops/head@2_species": 0.9,
        "judge/crops/calibrated/head@2_species": 0.7,
        "judge/crops/calibrated/all@2_species": 0.6,
        "judge/crops/agreement/all@all_images": 0.8,
        "judge/crops/auc/head@real_images": 0.9,
    }
    assert headline(scores) == {
        "eval/judge/crops/calibrated/all@2_species": 0.6,
        "eval/judge/crops/agreement/all@all_images": 0.8,
    }
