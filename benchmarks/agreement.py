"""Whether metrics and judges see what the oracle sees: ``python benchmarks/agreement.py [RUN...] [--out FILE]``.

Every part of every image has a verdict by the oracle, which training and discovery never see: it is of the species that
was asked for, or not. A score that agrees gives right parts more than wrong ones; its AUC is the probability of that,
0.5 for a coin. Per run, over all parts of a protocol; then the mean over runs with Student's interval, as images of one
training are not independent. Of EMR, which says yes or no, also how much of each it gets right; and Spearman's rank
correlation of the runs' EMR with their part accuracy.

Reads ``evaluation/scores.csv`` of runs on drawn birds. The columns of judges come from
``partcraft evaluate run=RUN 'eval.judge=[crops,crops_lite0]'``.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from partcraft_lit.evaluation.calibration import area_under_curve
from partcraft_lit.world.zoo.looks import FAMILIES

PART_NAMES = FAMILIES["bird"].part_names

TRUTH = "part_accuracy/"
#: What is compared over runs; the oracle has no verdict on backgrounds.
RUN_COLUMNS = ("emr/without_background", "part_accuracy/all")
Row = dict[str, str]
Pairs = list[tuple[float, bool]]
#: Score, part, measure; mean over runs, its interval, and how many runs have it.
Line = tuple[str, str, str, float, float, float, int]


def rows_of(run: Path, protocol: str) -> list[Row]:
    with (run / "evaluation" / "scores.csv").open(encoding="utf-8", newline="") as lines:
        return [row for row in csv.DictReader(lines) if row["protocol"] == protocol]


def pairs_of(rows: Iterable[Row], score: str, parts: Sequence[str]) -> Pairs:
    """(score, whether the oracle says that the part is right), where both are known."""
    found = []
    for row in rows:
        for part in parts:
            given, verdict = row.get(score + part), row.get(TRUTH + part)
            if given and verdict and not math.isnan(float(given)):
                found.append((float(given), float(verdict) == 1.0))
    return found


def auc(pairs: Pairs) -> float:
    scores, right = torch.tensor([s for s, _ in pairs]), torch.tensor([r for _, r in pairs], dtype=torch.bool)
    return area_under_curve(scores[right], scores[~right]) if pairs else math.nan


def share(right: bool) -> Callable[[Pairs], float]:
    """Of the right parts how many a yes-or-no score calls right; of the wrong ones how many it calls wrong."""

    def of(pairs: Pairs) -> float:
        agrees = [float((score == 1.0) == right) for score, truth in pairs if truth == right]
        return float(np.mean(agrees)) if agrees else math.nan

    return of


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, int]:
    known = np.array([value for value in values if not math.isnan(value)])
    if len(known) < 2:
        return (float(known.mean()) if len(known) else math.nan, math.nan, math.nan, len(known))
    reach = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known))
    return float(known.mean()), float(known.mean() - reach), float(known.mean() + reach), len(known)


def scores_in(row: Row) -> list[str]:
    """Beginnings of the columns that hold scores of parts, ``emr/``, ``cosim/``, ``judge/crops/calibrated/``."""
    last = PART_NAMES[-1]
    own = ["emr/", "cosim/"]
    return own + [
        key.removesuffix(last) for key in row if key.startswith("judge/") and key.endswith(f"calibrated/{last}")
    ]


def measured(runs: Sequence[Sequence[Row]]) -> list[Line]:
    """Every score by part and measure, then the rank correlation over runs."""
    scores = sorted(set.intersection(*(set(scores_in(rows[0])) for rows in runs)), key=scores_in(runs[0][0]).index)
    lines: list[Line] = []
    for score in scores:
        for name, parts in [("all", PART_NAMES), *((part, (part,)) for part in PART_NAMES)]:
            of_runs = [pairs_of(rows, score, parts) for rows in runs]
            measures = {"AUC": auc} | ({"right": share(True), "wrong": share(False)} if score == "emr/" else {})
            for measure, function in measures.items():
                lines.append((score.strip("/"), name, measure, *mean_interval([function(pairs) for pairs in of_runs])))
    if len(runs) > 2:
        means = [[np.nanmean([float(row[key] or "nan") for row in rows]) for rows in runs] for key in RUN_COLUMNS]
        rank = float(stats.spearmanr(*means).statistic)
        lines.append(("emr", "runs", "Spearman", rank, math.nan, math.nan, len(runs)))
    return lines


def show(lines: Sequence[Line]) -> None:
    table = {line[:3]: line[3:6] for line in lines}
    print("| score | " + " | ".join(["all parts", *PART_NAMES]) + " |\n|---|" + "---:|" * (len(PART_NAMES) + 1))
    for score, measure in dict.fromkeys((line[0], line[2]) for line in lines if line[1] == "all"):
        cells = [f"{table[score, part, measure][0]:.2f}" for part in PART_NAMES]
        mean, low, high = table[score, "all", measure]
        what = score if measure == "AUC" else f"{score}, {measure} parts called {measure}"
        print(f"| {what} | {mean:.2f} [{low:.2f}, {high:.2f}] | {' | '.join(cells)} |")
    if (over_runs := table.get(("emr", "runs", "Spearman"))) is not None:
        print(f"\nEMR and part accuracy of the runs: Spearman's rho {over_runs[0]:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="*", type=Path, help="folders; by default all of logs/train/runs, logs/table/runs"
    )
    parser.add_argument("--protocol", default="4 species")
    parser.add_argument("--out", type=Path, help="a CSV with every number")
    args = parser.parse_args()
    folders = args.runs or sorted(path.parent.parent for path in Path("logs").glob("*/runs/*/evaluation/scores.csv"))
    runs = [rows for run in folders if (rows := rows_of(run, args.protocol)) and TRUTH + PART_NAMES[0] in rows[0]]
    if not runs:
        print(f"None of {len(folders)} runs has scores of {args.protocol!r} with the oracle's verdicts.")
        return
    verdicts = [right for rows in runs for _, right in pairs_of(rows, TRUTH, PART_NAMES)]
    print(f"{len(runs)} runs, {args.protocol}: {len(verdicts):,} parts, {verdicts.count(False):,} of them wrong\n")
    lines = measured(runs)
    show(lines)
    if args.out:
        with args.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("score", "part", "measure", "mean", "low", "high", "runs"))
            writer.writerows([*line[:3], *(f"{value:.4f}" for value in line[3:6]), line[6]] for line in lines)


if __name__ == "__main__":
    main()
