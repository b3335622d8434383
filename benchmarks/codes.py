"""Purity of the codes that discovery finds: ``python benchmarks/codes.py [--species 10 20] [--seeds 0 1 2]``.

A code stands for the species that it shows most often, so the token of a part that is not of that species draws another
one, however long it is trained. Creatures whose truth is known, as many codes as species: k-means++ of the features,
greedy k-means++, and greedy k-means++ of mean-centred features, which is the default.
"""

from __future__ import annotations

import argparse
import logging

import torch
from torch import Tensor

from partcraft_lit.config import sources, stored
from partcraft_lit.config.validation import validate
from partcraft_lit.core.types import ABSENT
from partcraft_lit.parts.discovery import discover, read_parts
from partcraft_lit.parts.kmeans import cluster_codes, cosine_kmeans
from partcraft_lit.parts.settings import PartsSettings
from partcraft_lit.world.creatures import Creatures
from partcraft_lit.world.mini_features import MiniFeatures

WAYS = ("k-means++", "greedy", "centred")


def labels_of(vectors: Tensor, number: int, way: str, settings: PartsSettings, seed: int) -> Tensor:
    if way == "centred":
        return cluster_codes(vectors, number, nredo=settings.nredo, niter=settings.niter, seed=seed)[1]
    return cosine_kmeans(
        vectors, number, nredo=settings.nredo, niter=settings.niter, seed=seed, greedy=way == "greedy"
    )[1]


def purity(codes: Tensor, species: Tensor) -> float:
    """Share of images of the species that their code shows most often."""
    counts = torch.zeros(int(codes.max()) + 1, int(species.max()) + 1)
    counts.index_put_((codes, species), torch.ones(len(codes)), accumulate=True)
    return float(counts.amax(dim=1).sum()) / len(codes)


def measure(number: int, images: int, seed: int) -> dict[str, float]:
    """Way -> per cent, mean over the five parts of one set of creatures."""
    source = Creatures(number, images, seed=seed, species_split="test")
    settings = validate(
        stored.load(sources.conf_dir() / "parts" / "default.yaml") | {"K": number}, PartsSettings, "parts"
    )
    features = MiniFeatures(None)
    dictionary = discover(source, features, settings, seed=seed).dictionary
    _, codes, vectors = read_parts(source, features, dictionary)
    species = torch.tensor([source.label(index) for index in range(len(source))])
    sums = dict.fromkeys(WAYS, 0.0)
    for part in range(1, dictionary.num_parts + 1):
        shown = (codes[:, part] != ABSENT).nonzero()[:, 0]
        for way in WAYS:
            labels = labels_of(vectors[shown, part].float(), number, way, settings, seed)
            sums[way] += 100 * purity(labels, species[shown]) / dictionary.num_parts
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--species", type=int, nargs="+", default=[10, 20])
    parser.add_argument("--images", type=int, default=30, help="per species")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    logging.disable(logging.WARNING)
    print(f"purity in per cent, mean over parts\nspecies  seed  {'  '.join(WAYS)}")
    rows = []
    for number in given.species:
        for seed in given.seeds:
            rows.append(measure(number, given.images, seed))
            print(f"{number:7d} {seed:5d}  {_columns(rows[-1])}", flush=True)
    print(f"{'mean':>7s} {'':5s}  {_columns({way: sum(row[way] for row in rows) / len(rows) for way in WAYS})}")


def _columns(row: dict[str, float]) -> str:
    return "  ".join(f"{row[way]:{len(way)}.1f}" for way in WAYS)


if __name__ == "__main__":
    main()
