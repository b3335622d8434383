"""How learnt tokens lie to one another: a map in two dimensions, and whether tokens of one part keep together."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn import functional as F

#: With more vectors than this t-SNE approximates its forces by Barnes and Hut's tree.
_MOST_EXACT = 1000


def silhouette(vectors: Tensor, groups: Tensor) -> float:
    """Mean silhouette by cosine distance: 1 where groups are tight and far apart, 0 where they are mixed.

    Args:
        vectors: (N, D).
        groups: (N,) integers. A vector alone in its group counts 0, as is usual.

    Returns:
        -1...1; NaN with fewer than two groups.

    Source: Rousseeuw, "Silhouettes" (1987).
    """
    count = len(groups.unique())
    if count < 2:
        return float("nan")
    if count == len(groups):
        return 0.0
    return float(silhouette_score(vectors.double().cpu().numpy(), groups.cpu().numpy(), metric="cosine"))


def tsne(vectors: Tensor, perplexity: float = 15.0, steps: int = 500) -> Tensor:
    """t-SNE by cosine distance, started from the principal components: no chance is left in it.

    Args:
        vectors: (N, D), at least four.
        perplexity: neighbours that count; lowered where there are few vectors.
        steps: of gradient descent, at least 250.

    Returns:
        (N, 2).

    Source: van der Maaten and Hinton (2008).
    """
    count = len(vectors)
    if count < 4:
        raise ValueError(f"t-SNE needs at least four vectors, got {count}.")
    unit = F.normalize(vectors.double().cpu(), dim=1).numpy()
    left, scales, _ = np.linalg.svd(unit - unit.mean(axis=0), full_matrices=False)
    start = left[:, :2] * scales[:2]
    layout = TSNE(
        perplexity=min(perplexity, (count - 1) / 3),
        metric="cosine",
        init=(start / max(np.std(start[:, 0]), 1e-12) * 1e-4).astype(np.float32),
        max_iter=steps,
        random_state=0,
        method="exact" if count <= _MOST_EXACT else "barnes_hut",
    )
    return torch.from_numpy(layout.fit_transform(unit))
