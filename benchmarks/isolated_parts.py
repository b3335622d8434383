"""Parts read with their context masked out: ``python benchmarks/isolated_parts.py RUN... [--protocol "4 species"]``.

The receptive field of a patch covers the neighbours of a part, and in a hybrid no training image showed these beside
it. So the Python API, the app and the report mask them out, in the generated image and in four exemplars of each code.
Against the oracle's verdicts, in context and isolated: sensitivity (right parts read as the requested code),
specificity (wrong parts read as another one), and the AUROC of the margin, the cosine to the requested code less that
to the nearest other. On drawn birds.
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
from partcraft_lit.evaluation.calibration import area_under_curve


class Verdict(NamedTuple):
    """Of one part: what the oracle says, and by how much the requested code is nearer than the nearest other."""

    right: bool
    margin: float


def margin(cosines: dict[int, float], asked: int) -> float:
    return cosines[asked] - max(value for code, value in cosines.items() if code != asked)


def read(folder: Path, protocol: str) -> tuple[list[Verdict], list[Verdict]]:
    """Verdicts in context, as the predictor reads parts, and isolated."""
    rows, run = rows_of(folder, protocol), pc.open_run(str(folder))
    codes = run.stored.isolated
    assert codes is not None, f"{folder}: the images of this run are gone"
    in_context: list[Verdict] = []
    isolated: list[Verdict] = []
    for row in rows:
        view = run.read(folder / "evaluation" / row["image"])
        for part, name in enumerate(run.dictionary.names):
            verdict, asked = float(row.get(TRUTH + name) or "nan"), row["asked"].split()[part]
            if math.isnan(verdict) or not asked.isdigit() or name not in PART_NAMES or name not in view.codes:
                continue
            feature, code = view.part_feature(part), int(asked)
            cosines = F.cosine_similarity(feature[None], run.dictionary.code_centroids[part], dim=1)
            in_context.append(Verdict(verdict == 1.0, margin(dict(enumerate(cosines.tolist())), code)))
            labelled = view.tensor, torch.from_numpy(view.label_map)
            isolated.append(Verdict(verdict == 1.0, margin(codes.cosines(labelled, feature, part, (code,)), code)))
    return in_context, isolated


def line(verdicts: list[Verdict]) -> str:
    right, wrong = (torch.tensor([v.margin for v in verdicts if v.right == truth]) for truth in (True, False))
    sensitivity, specificity = float((right > 0).float().mean()), float((wrong <= 0).float().mean())
    return (
        f"{sensitivity:.2f} of {len(right)} | {specificity:.2f} of {len(wrong)} | {area_under_curve(right, wrong):.2f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--protocol", default="4 species")
    args = parser.parse_args()
    print("| run | part | sensitivity | specificity | AUROC |\n|---|---|---:|---:|---:|")
    for folder in args.runs:
        for way, verdicts in zip(("in context", "isolated"), read(folder, args.protocol), strict=True):
            print(f"| {folder.name} | {way} | {line(verdicts)} |", flush=True)


if __name__ == "__main__":
    main()
