"""Reading a part alone, all else grey: ``python benchmarks/isolated_parts.py RUN... [--protocol "4 species"]``.

Patch features see the neighbours of a part, and in a hybrid no training image showed these beside it. So the Python API
and the app look at a part alone, and at the codes that it may have, each in four training images. Against the oracle's
verdicts, as the predictor reads and alone: how many right parts are called right, how many wrong ones wrong, and the
AUC of the margin, the cosine to the requested code less that to the nearest other. On drawn birds.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import NamedTuple

import torch
from agreement import PART_NAMES, TRUTH, rows_of
from torch.nn import functional as F

import partcraft_lit as pc
from partcraft_lit.composer.isolated import IsolatedCodes
from partcraft_lit.evaluation.calibration import area_under_curve


class Verdict(NamedTuple):
    """Of one part: what the oracle says, and by how much the requested code is nearer than the nearest other."""

    right: bool
    margin: float


def margin(cosines: dict[int, float], asked: int) -> float:
    return cosines[asked] - max(value for code, value in cosines.items() if code != asked)


def read(folder: Path, protocol: str) -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts as the predictor reads parts, and alone."""
    run = pc.open_run(str(folder))
    alone = IsolatedCodes(run.stored)
    found: tuple[list[Verdict], list[Verdict]] = ([], [])
    for row in rows_of(folder, protocol):
        view = run.read(folder / "evaluation" / row["image"])
        for part, name in enumerate(run.dictionary.names):
            verdict, asked = float(row.get(TRUTH + name) or "nan"), row["asked"].split()[part]
            if math.isnan(verdict) or not asked.isdigit() or name not in PART_NAMES or name not in view.codes:
                continue
            plain = F.cosine_similarity(view.part_feature(part)[None], run.dictionary.code_centroids[part], dim=1)
            ways = (dict(enumerate(plain.tolist())), alone.cosines(view, part, (int(asked),)))
            for verdicts, cosines in zip(found, ways, strict=True):
                verdicts.append(Verdict(verdict == 1.0, margin(cosines, int(asked))))
    return found


def line(verdicts: list[Verdict]) -> str:
    right, wrong = (torch.tensor([v.margin for v in verdicts if v.right == truth]) for truth in (True, False))
    hits, misses = float((right > 0).float().mean()), float((wrong <= 0).float().mean())
    return f"{hits:.2f} of {len(right)} | {misses:.2f} of {len(wrong)} | {area_under_curve(right, wrong):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--protocol", default="4 species")
    args = parser.parse_args()
    print("| run | read | right parts called right | wrong ones called wrong | AUC |\n|---|---|---:|---:|---:|")
    for folder in args.runs:
        for way, verdicts in zip(("as it is", "alone"), read(folder, args.protocol), strict=True):
            print(f"| {folder.name} | {way} | {line(verdicts)} |", flush=True)


if __name__ == "__main__":
    main()
