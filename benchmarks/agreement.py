"""Whether metrics and judges see what the oracle sees: ``python benchmarks/agreement.py [RUN...] [--out FILE]``.

The oracle, which training and discovery never see, says of every part whether it is of the requested species. For each
score: the AUROC of its values against these verdicts, 0.5 for chance; for EMR, which is 0 or 1, also sensitivity (right
parts with EMR 1) and specificity (wrong parts with EMR 0). Each is computed per run, then averaged over runs with
Student's t interval, as images of one run are not independent. Last, Spearman's rank correlation of EMR and part
accuracy over runs.

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
from partcraft_lit.metrics.paired import paired_difference
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
    path = run / "evaluation" / "scores.csv"
    if not path.is_file():
        raise SystemExit(f"{run} is not a run with scores: it has no evaluation/scores.csv.")
    with path.open(encoding="utf-8", newline="") as lines:
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


def auroc(pairs: Pairs) -> float:
    scores, right = torch.tensor([s for s, _ in pairs]), torch.tensor([r for _, r in pairs], dtype=torch.bool)
    return area_under_curve(scores[right], scores[~right]) if pairs else math.nan


def sensitivity(pairs: Pairs) -> float:
    right = [score == 1.0 for score, truth in pairs if truth]
    return float(np.mean(right)) if right else math.nan


def specificity(pairs: Pairs) -> float:
    wrong = [score != 1.0 for score, truth in pairs if not truth]
    return float(np.mean(wrong)) if wrong else math.nan


def mean_interval(values: Sequence[float]) -> tuple[float, float, float, int]:
    """Mean, bounds, and number of the runs that have a value."""
    known = [[value] for value in values if not math.isnan(value)]
    if not known:
        return math.nan, math.nan, math.nan, 0
    found = paired_difference(known, [[0.0]] * len(known))
    return found.mean, found.low, found.high, found.seeds


def scores_in(row: Row) -> list[str]:
    """Beginnings of the columns that hold scores of parts, ``emr/``, ``cosim/``, ``judge/crops/calibrated/``."""
    last = PART_NAMES[-1]
    own = ["emr/", "cosim/"]
    return own + [
        key.removesuffix(last) for key in row if key.startswith("judge/") and key.endswith(f"calibrated/{last}")
    ]


MEASURES: tuple[Callable[[Pairs], float], ...] = (auroc, sensitivity, specificity)


def measured(runs: Sequence[Sequence[Row]]) -> list[Line]:
    """Every score by part and measure, then the rank correlation over runs."""
    scores = sorted(set.intersection(*(set(scores_in(rows[0])) for rows in runs)), key=scores_in(runs[0][0]).index)
    lines: list[Line] = []
    for score in scores:
        for name, parts in [("all", PART_NAMES), *((part, (part,)) for part in PART_NAMES)]:
            of_runs = [pairs_of(rows, score, parts) for rows in runs]
            measures = MEASURES if score == "emr/" else MEASURES[:1]
            for measure in measures:
                values = [measure(pairs) for pairs in of_runs]
                lines.append((score.strip("/"), name, measure.__name__, *mean_interval(values)))
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
        bounds = "" if math.isnan(low) else f" [{low:.2f}, {high:.2f}]"
        print(f"| {score} {measure} | {mean:.2f}{bounds} | {' | '.join(cells)} |")
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
    wrong, number = verdicts.count(False), "1 run" if len(runs) == 1 else f"{len(runs)} runs"
    print(f"{number}, {args.protocol}: {len(verdicts):,} parts, {wrong:,} of them wrong\n")
    lines = measured(runs)
    show(lines)
    if args.out:
        with args.out.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("score", "part", "measure", "mean", "low", "high", "runs"))
            writer.writerows([*line[:3], *(f"{value:.4f}" for value in line[3:6]), line[6]] for line in lines)


if __name__ == "__main__":
    main()
