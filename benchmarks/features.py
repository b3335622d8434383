"""How well parts are found without labels: ``python benchmarks/features.py [--images 30] [--species 20]``.

Creatures of the held-out world, whose truth is known: the embedded features beside plain colours, at the default
settings of discovery. ``--world pretraining`` takes other species, for choosing settings without looking at held-out
ones; ``--folder`` also writes atlas and masks of each.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import torch

from partcraft_lit.config import sources, stored
from partcraft_lit.config.validation import validate
from partcraft_lit.core.types import PatchFeatures
from partcraft_lit.parts.atlas import Atlas
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.parts.discovery import Discovery, discover
from partcraft_lit.parts.quality import PartQuality, score_parts
from partcraft_lit.parts.settings import PartsSettings
from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.mini_features import MiniFeatures
from partcraft_lit.world.zoo.looks import species_table


class OtherCreatures(Creatures):
    """Creatures with looks of the pretraining world."""

    def __init__(self, species: int, images_per_species: int, seed: int) -> None:
        super().__init__(species, images_per_species, seed=seed)
        self._looks = torch.from_numpy(species_table(species, seed, world="pretraining"))

    def content_hash(self, index: int) -> str:
        return f"pretraining{super().content_hash(index)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--species", type=int, default=20)
    parser.add_argument("--images", type=int, default=30, help="per species")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--world", choices=("held_out", "pretraining"), default="held_out")
    parser.add_argument("--weights", type=Path, help="folder; default: the package's")
    parser.add_argument("--folder", type=Path, help="where atlas and masks go; default: nowhere")
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    kind = Creatures if given.world == "held_out" else OtherCreatures
    source = kind(given.species, given.images, seed=given.seed)
    print(
        f"{len(source)} pictures of {given.species} {given.world} species, M=5, K={given.species}, seed {given.seed}\n"
    )
    print(
        f"{'features':10s} {'fg IoU':>7s} {'parts':>6s} " + " ".join(f"{name:>6s}" for name in source.part_names),
        end="",
    )
    print(f" {'NMI':>6s} {'chance':>6s} {'confid.':>7s} {'seconds':>7s}")
    for features in (ColorFeatures(), MiniFeatures(given.weights)):
        found, quality, seconds = measure(source, features, given.species)
        print(row(features.id, source, found, quality, seconds), flush=True)
        if given.folder is not None:
            Atlas(source, found).draw_overview(given.folder / f"atlas_{features.id}.png")
            Atlas(source, found).draw_masks(given.folder / f"masks_{features.id}.png")


def measure(source: Creatures, features: PatchFeatures, codes: int) -> tuple[Discovery, PartQuality, float]:
    """Discovery, its scores, and the seconds it took."""
    start = time.perf_counter()
    settings = validate(
        stored.load(sources.conf_dir() / "parts" / "default.yaml") | {"K": codes}, PartsSettings, "parts"
    )
    found = discover(source, features, settings, seed=0)
    seconds = time.perf_counter() - start
    return found, score_parts(source, found.label_maps, found.codes), seconds


def row(name: str, source: Creatures, found: Discovery, quality: PartQuality, seconds: float) -> str:
    """One line of the table."""
    parts = " ".join(f"{quality.part_iou[part]:6.3f}" for part in source.part_names)
    return (
        f"{name:10s} {quality.foreground_iou:7.3f} {quality.mean_part_iou:6.3f} {parts} {quality.mean_nmi:6.3f} "
        f"{quality.nmi_shuffled:6.3f} {found.report.foreground['confidence']:7.2f} {seconds:7.0f}"
    )


if __name__ == "__main__":
    main()
