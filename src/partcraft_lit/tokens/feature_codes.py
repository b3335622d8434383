"""Initialisation of code embeddings from the cluster centroids of discovery.

A random embedding says nothing of its code. Initialised from centroids, codes that look alike are neighbours, and the
mapper, which all codes share, can learn a function of the features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from partcraft_lit.core.randomness import torch_generator

#: Principal components with less than this share of the largest singular value are left out as rounding.
_LEAST = 0.02


@dataclass(frozen=True)
class CodeFeatures:
    """Features of the codes of a dictionary.

    Attributes:
        centroids: (K_m, D) of each part 0...M; rows of zeros for codes that no image shows.
        known: how many codes of each part, from the first on, the projection is fitted on; codes that corrections added
            are only projected, so that they do not move the others.
    """

    centroids: tuple[Tensor, ...]
    known: tuple[int, ...]


def starting_codes(features: CodeFeatures, width: int, std: float, seed: int) -> list[Tensor]:
    """Centroids projected into the embedding space: centred, PCA-whitened by half, randomly rotated, scaled.

    Whitened by half, a principal component is divided by the square root of its standard deviation. In trials without
    whitening and with full whitening, the error differed by less than between seeds.

    Args:
        features: of the codes.
        width: of the embedding (D).
        std: standard deviation over all entries of the known codes.
        seed: of the rotation.

    Returns:
        (K_m, width) float32 of each part. Zeros for codes without features, and for all codes if they have the same.

    Source: ours. Encoders that turn image features into word vectors, such as ELITE (arXiv 2302.13848) and E4T (arXiv
    2302.12228), are pretrained on many images; here the mapper of the run itself learns to read the features.
    """
    tables = [table.double() for table in features.centroids]
    first = [table[:number] for table, number in zip(tables, features.known, strict=True)]
    rows = torch.cat([table[_has_features(table)] for table in first])
    mean = rows.mean(dim=0)
    directions, scales = _principal(rows - mean, width)
    if not len(scales):
        return [table.new_zeros(len(table), width, dtype=torch.float32) for table in tables]
    projection = directions / scales.sqrt() @ _rotation(width, seed)[: len(scales)]
    factor = std / ((rows - mean) @ projection).square().mean().sqrt()
    return [
        torch.where(_has_features(table)[:, None], (table - mean) @ projection * factor, 0.0).float()
        for table in tables
    ]


def _has_features(table: Tensor) -> Tensor:
    return table.abs().sum(dim=1) > 0


def _principal(rows: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """(D, n) principal components, with a sign of their own whatever the library, and (n,) standard deviations."""
    _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
    kept = (singular > max(_LEAST * float(singular[:1].sum()), 1e-9)).nonzero().flatten()[:most]
    directions, singular = directions[kept], singular[kept]
    # A singular vector and its negative are the same; which one comes out depends on the library.
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    return (directions * largest.sign()).T, singular / max(1, len(rows)) ** 0.5


def _rotation(size: int, seed: int) -> Tensor:
    drawn = torch.randn(size, size, generator=torch_generator(seed, "mapper", "frame"), dtype=torch.float64)
    rotation: Tensor = torch.linalg.qr(drawn)[0]
    return rotation
