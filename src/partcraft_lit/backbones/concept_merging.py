"""Closed-form merging of concepts (Custom Diffusion, section 3.2): several models' keys and values as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError

#: Smallest eigenvalue of the concepts' Gram matrix relative to the largest; below, it counts as singular.
_RANK_TOLERANCE = 1e-6
#: Ridge on R^T R in units of its mean diagonal: with few captions the matrix is singular.
_RIDGE = 1e-6


def merge_models(
    originals: Mapping[str, Tensor],
    trained: Sequence[Mapping[str, Tensor]],
    concepts: Sequence[Tensor],
    regularization: Tensor,
) -> dict[str, Tensor]:
    """The projections nearest to the originals on regularization captions that map each concept as its model does.

    For each projection it minimises ``|| W R^T - W0 R^T ||`` subject to ``W C^T = V^T``, where V are the outputs of the
    trained models for their own concepts. Computed in float64.

    Args:
        originals: name -> (out, width) W0, the untrained weight.
        trained: for each model, the same names -> trained weights.
        concepts: for each model, (s_i, width) C, text encoder states of its own concepts' tokens; all rows together
            linearly independent.
        regularization: (n, width) R, text encoder states of ordinary captions.

    Returns:
        name -> (out, width) merged weight, of the type of the original.

    Raises:
        UserError: if a model lacks a projection, or the concepts' rows are linearly dependent, so that no weight
            fulfils all conditions.
        ValueError: if the shapes do not match.

    Source: Custom Diffusion (arXiv 2212.04488), section 3.2 and appendix B. Differs: a ridge of 1e-6 of the mean
    diagonal, for fewer captions than the text is wide; the conditions hold with it to the same precision.
    """
    for number, model in enumerate(trained):
        if missing := originals.keys() - model.keys():
            raise UserError(
                f"Model {number + 1} of {len(trained)} lacks {len(missing)} projections, for instance "
                f"{min(missing)!r}; only models that trained cross-attention keys and values can be merged."
            )
    texts = torch.cat([states.double() for states in concepts])
    metric = _metric(regularization)
    merged = {}
    for name, weight in originals.items():
        if not texts.shape[1] == regularization.shape[1] == weight.shape[1]:
            raise ValueError(
                f"For {name!r} of shape {tuple(weight.shape)}, concepts and regularization must be (n, "
                f"{weight.shape[1]}), got {tuple(texts.shape)} and {tuple(regularization.shape)}."
            )
        targets = torch.cat([states.double() @ model[name].double().T for model, states in zip(trained, concepts)])
        merged[name] = (weight.double() + _update(weight.double(), targets, texts, metric)).to(weight.dtype)
    return merged


def _metric(regularization: Tensor) -> Tensor:
    """(width, width) R^T R with its ridge."""
    states = regularization.double()
    correlation = states.T @ states
    return correlation + _RIDGE * correlation.diagonal().mean() * torch.eye(states.shape[1]).to(correlation)


def _update(weight: Tensor, targets: Tensor, texts: Tensor, metric: Tensor) -> Tensor:
    """v^T d of the paper: d = C metric^-1, v^T = (V^T - W0 C^T) (d C^T)^-1."""
    directions = torch.linalg.solve(metric, texts.T).T  # (s, width)
    gram = directions @ texts.T  # (s, s), symmetric
    scale = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).rsqrt()
    values = torch.linalg.eigvalsh(gram * scale[:, None] * scale)
    if float(values[0]) < _RANK_TOLERANCE * float(values[-1]):
        raise UserError(
            "The concepts' text encoder states are linearly dependent: two concepts have the same text. Merge models "
            "of different concepts, each with its own token."
        )
    return torch.linalg.solve(gram, (targets - texts @ weight.T)).T @ directions
