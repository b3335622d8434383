"""How well parts of photographs are found: ``python benchmarks/photo_features.py FOLDER...``.

Each folder holds ``images/`` and ``composition.csv``: a row per image with ``file`` (relative to the folder), ``seed``,
and a column per part: the species that it was made of. Discovery sees the images alone. NMI compares the species of a
part with the codes of the found part it is paired with, such that the sum of NMI is largest; an absent part counts as a
code of its own. "chance" is the mean NMI of codes shuffled among images.
"""

from __future__ import annotations

import argparse
import csv
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from partcraft_lit.config import sources, stored
from partcraft_lit.config.validation import validate
from partcraft_lit.core.types import PatchFeatures
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.parts.atlas import Atlas
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.parts.discovery import discover
from partcraft_lit.parts.efficientnet import EfficientNetFeatures
from partcraft_lit.parts.settings import PartsSettings
from partcraft_lit.world.mini_features import MiniFeatures

FEATURES: dict[str, Callable[[], PatchFeatures]] = {
    "color": ColorFeatures,
    "mini": MiniFeatures,
    "efficientnet_lite0": EfficientNetFeatures,
}


class ComposedImages:
    """Some of the images of a folder, spread evenly, with the species of their parts.

    Args:
        folder: with ``images/`` and ``composition.csv``.
        number: of images; 0 for all.
    """

    class_noun = ""
    class_names: Sequence[str] = ()

    def __init__(self, folder: Path, number: int) -> None:
        self.folder = folder.resolve().name
        self._files = ImageFolder(folder / "images")
        with (folder / "composition.csv").open(encoding="utf-8", newline="") as table:
            rows = {row["file"]: row for row in csv.DictReader(table)}
        number = min(number, len(self._files)) or len(self._files)
        self._chosen = [index * len(self._files) // number for index in range(number)]
        chosen = [rows[f"images/{self._files.name(index)}"] for index in self._chosen]
        self.species = {
            part: [row[part] for row in chosen] for part in next(iter(rows.values())) if part not in ("file", "seed")
        }

    def __len__(self) -> int:
        return len(self._chosen)

    def image(self, index: int) -> Tensor:
        return self._files.image(self._chosen[index])

    def name(self, index: int) -> str:
        return self._files.name(self._chosen[index])

    def content_hash(self, index: int) -> str:
        return self._files.content_hash(self._chosen[index])

    def label(self, index: int) -> int | None:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="*", help="none: nothing is measured")
    parser.add_argument("--images", type=int, default=160, help="per folder, 0 for all")
    parser.add_argument("--parts", type=int, default=5, help="M")
    parser.add_argument("--codes", type=int, default=5, help="K")
    parser.add_argument("--seeds", type=int, default=1, help="discoveries that are averaged")
    parser.add_argument("--features", nargs="+", choices=FEATURES, default=["mini", "efficientnet_lite0"])
    parser.add_argument("--atlas", type=Path, help="where atlas and masks go; default: nowhere")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    if given.atlas is not None:
        given.atlas.mkdir(parents=True, exist_ok=True)
    if not given.folders:
        print("Nothing to measure: give folders with images/ and composition.csv.")
    for folder in given.folders:
        source = ComposedImages(folder, given.images)
        columns = ("features", "images", "M", "K", "NMI", *source.species, "chance", "confidence", "CPU s")
        print(f"{source.folder}\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for name in given.features:
            print(measure(source, FEATURES[name](), given), flush=True)


def measure(source: ComposedImages, features: PatchFeatures, given: argparse.Namespace) -> str:
    """One row of the table."""
    changes = {"M": given.parts, "K": given.codes}
    settings = validate(stored.load(sources.conf_dir() / "parts" / "default.yaml") | changes, PartsSettings, "parts")
    scores, chances, confidences = [], [], []
    start = time.process_time()
    for seed in range(given.seeds):
        found = discover(source, features, settings, seed=seed)
        scores.append(code_scores(source.species, found.codes))
        order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
        chances.append(code_scores(source.species, found.codes[order]).mean())
        confidences.append(found.report.foreground["confidence"])
        if given.atlas is not None and seed == 0:
            atlas = Atlas(source, found)
            atlas.draw_overview(given.atlas / f"{source.folder}_{features.id}_atlas.png")
            atlas.draw_masks(given.atlas / f"{source.folder}_{features.id}_masks.png")
    seconds = (time.process_time() - start) / given.seeds
    score = torch.stack(scores).mean(dim=0)  # (true parts,)
    return (
        f"| {features.id} | {len(source)} | {given.parts} | {given.codes} | **{score.mean():.3f}** | "
        f"{' | '.join(f'{value:.3f}' for value in score)} | {torch.stack(chances).mean():.3f} | "
        f"{sum(confidences) / len(confidences):.2f} | {seconds:.0f} |"
    )


def code_scores(species: dict[str, list[str]], codes: Tensor) -> Tensor:
    """(true parts,) NMI of the species of each part and the codes, (N, M + 1), of the found part it is paired with."""
    pairs = torch.tensor(
        [[normalized_mutual_info_score(truth, column) for column in codes.T[1:].tolist()] for truth in species.values()]
    )
    rows, columns = linear_sum_assignment(pairs, maximize=True)
    return torch.zeros(len(pairs)).index_put((torch.from_numpy(rows),), pairs[rows, columns])


if __name__ == "__main__":
    main()
