"""How learnt tokens lie to one another: a map in two dimensions, and whether tokens of one part keep together."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Entropies of t-SNE's neighbourhoods are met within this, in nats.
_ENTROPY_TOLERANCE = 1e-4
_BISECTIONS = 60
_EARLY_STEPS = 100
_EARLY_EXAGGERATION = 4.0


def silhouette(vectors: Tensor, groups: Tensor) -> float:
    """Mean silhouette by cosine distance: 1 where groups are tight and far apart, 0 where they are mixed.

    Args:
        vectors: (N, D).
        groups: (N,) integers. A vector alone in its group counts 0, as is usual.

    Returns:
        -1...1; NaN with fewer than two groups.

    Source: Rousseeuw, "Silhouettes" (1987).
    """
    unit = F.normalize(vectors.double(), dim=1)
    distance = 1 - unit @ unit.T  # (N, N)
    names = groups.unique()
    if len(names) < 2:
        return float("nan")
    member = (groups[:, None] == names).double()  # (N, G)
    sums, sizes = distance @ member, member.sum(dim=0)
    own = member.bool()
    own_size = sizes.expand_as(member)[own]
    inside = sums[own] / (own_size - 1).clamp_min(1)
    nearest = (sums / sizes).masked_fill(own, torch.inf).min(dim=1).values
    values = (nearest - inside) / torch.maximum(nearest, inside).clamp_min(1e-12)
    return float(torch.where(own_size > 1, values, 0.0).mean())


def principal_components(vectors: Tensor, dims: int = 2) -> Tensor:
    """(N, D) -> (N, dims) coordinates along the directions of most variance, each with its largest entry positive."""
    centred = vectors.double() - vectors.double().mean(dim=0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    kept = directions[:dims]
    signs = kept.gather(1, kept.abs().argmax(dim=1, keepdim=True)).sign()
    found = centred @ (kept * signs).T
    return F.pad(found, (0, dims - found.shape[1]))


def tsne(vectors: Tensor, perplexity: float = 15.0, steps: int = 500) -> Tensor:
    """Exact t-SNE by cosine distance, from the principal components: no chance is left in it.

    Args:
        vectors: (N, D), at least four.
        perplexity: neighbours that count; lowered where there are few vectors.
        steps: of gradient descent.

    Returns:
        (N, 2) float64.

    Source: van der Maaten and Hinton (2008). Differs: started from PCA instead of at random, exaggeration of 4 for the
    first 100 steps.
    """
    count = len(vectors)
    if count < 4:
        raise ValueError(f"t-SNE needs at least four vectors, got {count}.")
    unit = F.normalize(vectors.double(), dim=1)
    near = _neighbourhoods((1 - unit @ unit.T).clamp_min(0), min(perplexity, (count - 1) / 3))
    places = principal_components(unit)
    places = places / places[:, 0].std().clamp_min(1e-12) * 1e-2
    rate, velocity, gains = max(count / _EARLY_EXAGGERATION, 20.0), torch.zeros_like(places), torch.ones_like(places)
    for step in range(steps):
        early = step < _EARLY_STEPS
        gradient = _gradient(near * _EARLY_EXAGGERATION if early else near, places)
        same = gradient.sign() == velocity.sign()
        gains = torch.where(same, gains * 0.8, gains + 0.2).clamp_min(0.01)
        velocity = (0.5 if early else 0.8) * velocity - rate * gains * gradient
        places = places + velocity
        places = places - places.mean(dim=0)
    return places


def _gradient(near: Tensor, places: Tensor) -> Tensor:
    """Of the divergence between neighbourhoods before and after."""
    apart = torch.cdist(places, places).square()
    closeness = (1 / (1 + apart)).fill_diagonal_(0)
    pull = (near - closeness / closeness.sum()) * closeness  # (N, N)
    return 4 * (pull.sum(dim=1, keepdim=True) * places - pull @ places)


def _neighbourhoods(distance: Tensor, perplexity: float) -> Tensor:
    """(N, N) symmetric probabilities that add to 1, each row with the wanted perplexity before it was made so."""
    count = len(distance)
    others = ~torch.eye(count, dtype=torch.bool)
    rows = distance[others].view(count, count - 1)
    rows = rows / rows.mean().clamp_min(1e-12)
    target = torch.tensor(perplexity, dtype=torch.float64).log()
    low, high = torch.zeros(count, 1, dtype=torch.float64), torch.full((count, 1), torch.inf, dtype=torch.float64)
    sharpness = torch.ones(count, 1, dtype=torch.float64)
    shares = rows
    for _ in range(_BISECTIONS):
        logits = -rows * sharpness
        shares = logits.softmax(dim=1)
        excess = -(shares * logits.log_softmax(dim=1)).sum(dim=1, keepdim=True) - target
        if float(excess.abs().max()) < _ENTROPY_TOLERANCE:
            break
        low, high = torch.where(excess > 0, sharpness, low), torch.where(excess > 0, high, sharpness)
        sharpness = torch.where(high.isinf(), sharpness * 2, (low + high) / 2)
    whole = torch.zeros_like(distance)
    whole[others] = shares.flatten()
    return (whole + whole.T) / (2 * count)
