"""Reading a part alone, all else grey: ``python benchmarks/isolated_parts.py RUN... [--protocol "4 species"]``.

Patch features see the neighbours of a part, and in a hybrid no training image showed these beside it. Here everything
but the part is painted grey before the features are computed, in training images, whose means are the codes, and in
generated ones. Nearest codes by cosine of mean-centred features, with and without grey, against the oracle's verdicts:
how many right parts are called right, how many wrong ones wrong, and the AUC of the margin (of the requested code over
the nearest other). A minute a run, on drawn birds.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from agreement import PART_NAMES, TRUTH, Row, rows_of
from torch import Tensor
from torch.nn import functional as F

import partcraft_lit as pc
from partcraft_lit.core.images import read_image
from partcraft_lit.core.types import ABSENT, PatchFeatures
from partcraft_lit.evaluation.calibration import area_under_curve
from partcraft_lit.parts.predictor import KMeansPartPredictor

GREY = 128


def isolated(image: Tensor, label_map: Tensor, part: int) -> Tensor:
    """(3, height, width) uint8 with everything but the part in grey."""
    there = F.interpolate((label_map == part)[None, None].float(), size=image.shape[1:], mode="nearest")[0, 0] > 0
    return torch.where(there, image, GREY)


def part_features(
    features: PatchFeatures, images: Sequence[Tensor], label_maps: Sequence[Tensor], part: int, alone: bool
) -> Tensor:
    """(N, D) mean feature of a part, NaN where it is absent."""
    shown = [isolated(*pair, part) if alone else pair[0] for pair in zip(images, label_maps, strict=True)]
    means = [
        F.normalize(grid.float(), dim=-1)[label_map == part].mean(dim=0)
        for grid, label_map in zip(features(shown), label_maps, strict=True)
    ]
    return torch.stack(means)


def similarities(train: Tensor, codes: Tensor, test: Tensor) -> Tensor:
    """(B, K) cosines of centred features with the mean of each code."""
    there = (codes != ABSENT) & ~train.isnan().any(dim=1)
    center = train[there].mean(dim=0)
    means = [train[there & (codes == code)].mean(dim=0) for code in range(int(codes.max()) + 1)]
    return F.normalize(test - center, dim=1) @ F.normalize(torch.stack(means) - center, dim=1).nan_to_num().T


def judged(rows: Sequence[Row], part: int, name: str, cosines: Tensor) -> list[tuple[bool, bool, float]]:
    """(oracle says right, read as requested, margin) of each image that was to show the part."""
    found = []
    for row, cosine in zip(rows, cosines, strict=True):
        verdict, asked = float(row[TRUTH + name] or "nan"), row["asked"].split()[part]
        if math.isnan(verdict) or not asked.isdigit() or bool(cosine.isnan().any()):
            continue
        others = torch.cat([cosine[: int(asked)], cosine[int(asked) + 1 :]])
        margin = float(cosine[int(asked)] - others.max())
        found.append((verdict == 1.0, margin > 0, margin))
    return found


@torch.no_grad()
def measure(run: pc.Run, folder: Path, protocol: str) -> None:
    predictor = KMeansPartPredictor(run.dictionary, run.stored.reader.features)
    source, rows = run.stored.source, rows_of(folder, protocol)
    images = [source.image(index) for index in range(len(source))]
    generated = [read_image(folder / "evaluation" / row["image"]) for row in rows]
    real, made = predictor.predict(images), predictor.predict(generated)
    for way, alone in (("as it is", False), ("alone", True)):
        verdicts = []
        for part, name in enumerate(run.dictionary.names):
            if name in PART_NAMES:
                train = part_features(predictor.features, images, real.label_maps, part, alone)
                test = part_features(predictor.features, generated, made.label_maps, part, alone)
                verdicts += judged(rows, part, name, similarities(train, real.codes[:, part], test))
        right = [one for one in verdicts if one[0]]
        wrong = [one for one in verdicts if not one[0]]
        hits = sum(read for _, read, _ in right) / max(len(right), 1)
        misses = sum(not read for _, read, _ in wrong) / max(len(wrong), 1)
        auc = area_under_curve(*(torch.tensor([margin for *_, margin in some]) for some in (right, wrong)))
        print(
            f"| {folder.name} | {way} | {hits:.2f} of {len(right)} | {misses:.2f} of {len(wrong)} | {auc:.2f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--protocol", default="4 species")
    args = parser.parse_args()
    print("| run | read | right parts called right | wrong ones called wrong | AUC |\n|---|---|---:|---:|---:|")
    for folder in args.runs:
        measure(pc.open_run(str(folder)), folder, args.protocol)


if __name__ == "__main__":
    main()
