"""Sweeps as tables and figures: what is shown, in which order, on which axes."""

from __future__ import annotations

import csv
import math

import pytest
from matplotlib.figure import Figure
from PIL import Image

from partcraft_lit.report import sweep
from partcraft_lit.report.sweep import SweepJob, headline_scores, small_is_better, write_sweep

EMR, FID = "eval/emr@reconstruction", "pictures/fid@mini@reconstruction"


def job(parameters, emr=None, fid=None, status="done"):
    name = " ".join(f"{key}={value}" for key, value in parameters.items())
    scores = {key: value for key, value in ((EMR, emr), (FID, fid)) if value is not None}
    return SweepJob(name, f"folder-{name.replace(' ', '-')}", status, parameters, scores, 1.5)


def rows_of(folder):
    with (folder / "sweep.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


GRID = [
    job({"loss.lambda_attn": text, "seed": str(seed)}, emr + 0.01 * seed, 1 - emr)
    for text, emr in (("0", 0.2), ("1e-3", 0.4), ("0.1", 0.3))
    for seed in (0, 1)
]


def test_the_best_first_and_means_over_seeds(tmp_path):
    failed = job({"loss.lambda_attn": "9", "seed": "0"}, 0.9, status="failed")  # what it left does not count
    write_sweep(tmp_path, [*GRID, failed])
    rows = rows_of(tmp_path)
    assert [(row["loss.lambda_attn"], row["seed"]) for row in rows][:3] == [("1e-3", "1"), ("1e-3", "0"), ("0.1", "1")]
    assert rows[-1]["status"] == "failed" and rows[-1][EMR] == ""
    text = (tmp_path / "sweep.md").read_text(encoding="utf-8")
    assert "6 of 7 jobs are done. Ordered by `eval/emr@reconstruction`, the largest first" in text
    means = text[text.index("## Mean over seeds") : text.index("## Jobs")].splitlines()
    assert means[6:9] == [  # 0.01 apart: 0.01 / √2
        "| 1e-3 | **0.405** ± 0.007 | **0.600** ± 0.000 | 2 |",
        "| 0.1 | 0.305 ± 0.007 | 0.700 ± 0.000 | 2 |",
        "| 0 | 0.205 ± 0.007 | 0.800 ± 0.000 | 2 |",
    ]
    assert "**failed**" in text.splitlines()[-1]
    with Image.open(tmp_path / "sweep.png") as image:
        assert image.width > 1000
    before = (tmp_path / "sweep.png").read_bytes()
    write_sweep(tmp_path, [*GRID, failed])
    assert (tmp_path / "sweep.png").read_bytes() == before


def test_an_objective_orders_the_jobs(tmp_path):
    write_sweep(tmp_path, GRID, FID)
    assert rows_of(tmp_path)[0][FID] == "0.6" and rows_of(tmp_path)[-1][FID] == "0.8"
    assert "the smallest first" in (tmp_path / "sweep.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "score, small",
    [
        (FID, True),
        ("pictures/kid@dino@2_species", True),
        ("eval/leakage@2_species", True),
        (EMR, False),
        ("live/score", False),
    ],
)
def test_which_way_is_better(score, small):
    assert small_is_better(score) is small


def test_few_scores_are_shown_and_no_bounds():
    scores = [f"eval/emr/part{number}@reconstruction" for number in range(20)]
    scores += [EMR, FID, "untrained/emr@reconstruction", "ceiling/emr", "codes/head", "truth/part_accuracy@perfect_2"]
    shown = headline_scores([SweepJob("a", "a", "done", {}, dict.fromkeys(scores, 1.0))])
    assert shown[:2] == [EMR, FID] and len(shown) == 5
    assert not [name for name in shown if name.startswith(("untrained", "ceiling", "codes")) or "perfect" in name]


@pytest.mark.parametrize(
    "texts, scale, places",
    [
        (["0.1", "0.01", "0.001"], "log", [0.1, 0.01, 0.001]),
        (["0", "1e-3", "1"], "log", [1e-4, 1e-3, 1]),  # zero stands a decade below the smallest
        (["4", "8", "16"], "linear", [4, 8, 16]),
        (["-1", "100"], "linear", [-1, 100]),
        (["mse", "dice"], "linear", [1, 0]),  # words by the alphabet
    ],
)
def test_the_axis_of_a_parameter(texts, scale, places):
    axes = Figure().subplots()
    found = sweep._scale(axes, texts)
    assert axes.get_xscale() == scale
    assert [found[text] for text in texts] == pytest.approx(places)


def test_colours_tell_words_apart():
    jobs = [job({"lora.rank": rank, "loss.attention": kind}, 0.1) for rank in "48" for kind in ("mse", "dice")]
    assert sweep._color_key(jobs, ["lora.rank", "loss.attention"]) == "loss.attention"
    assert sweep._color_key(jobs, ["lora.rank"]) is None
    drawn = [job({"optim.lr": str(math.sqrt(n)), "lora.rank": str(n)}, 0.1) for n in range(1, 40)]
    assert sweep._color_key(drawn, ["optim.lr", "lora.rank"]) is None  # a search, not a grid


def test_jobs_without_scores_make_a_table_alone(tmp_path):
    write_sweep(
        tmp_path, [SweepJob("seed=1", "0-a", "done", {"seed": "1"}), SweepJob("b", "1-b", "failed", {"seed": "2"})]
    )
    assert [row["status"] for row in rows_of(tmp_path)] == ["done", "failed"]
    assert not (tmp_path / "sweep.png").exists()
