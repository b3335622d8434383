"""Closed-form merge of separately trained key and value projections: several concepts in one model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError

#: Least share that a direction of the concepts' texts may have of the strongest; below, two texts are the same.
_RANK_TOLERANCE = 1e-6
#: Added to the correlation of the regularisation texts, in units of its mean diagonal: few texts leave directions open.
_RIDGE = 1e-6


def merge_projections(original: Tensor, targets: Tensor, concepts: Tensor, regularization: Tensor) -> Tensor:
    """The projection nearest to the original, on ordinary texts, that maps the concepts' texts to what was learned.

    It minimises ``|| W R^T - W0 R^T ||`` subject to ``W C^T = V^T``. Computed in float64.

    Args:
        original: (out, width) W0, the untrained weight.
        targets: (s, out) V, what the trained models make of the concepts' texts.
        concepts: (s, width) C, states of the text encoder at the concepts' words; independent rows.
        regularization: (n, width) R, states of ordinary captions.

    Returns:
        (out, width), of the type of ``original``.

    Raises:
        UserError: if the concepts' texts do not differ, so that no weight can serve all of them.
        ValueError: if the shapes do not fit together.

    Source: Custom Diffusion (arXiv 2212.04488), section 3.2 and appendix B. Differs: a ridge of 1e-6 of the mean, for
    fewer captions than the text is wide; the condition on the concepts holds with it to the same precision.
    """
    _check_shapes(original, targets, concepts, regularization)
    weight, goal, texts = original.double(), targets.double(), concepts.double()
    return (weight + _update(weight, goal, texts, _metric(regularization))).to(original.dtype)


def merge_models(
    originals: Mapping[str, Tensor],
    trained: Sequence[Mapping[str, Tensor]],
    concepts: Sequence[Tensor],
    regularization: Tensor,
) -> dict[str, Tensor]:
    """``merge_projections`` for every projection of a UNet.

    Args:
        originals: name -> (out, width) untrained weight.
        trained: for each model, the same names -> trained weights.
        concepts: for each model, (s_i, width) states of its text encoder at its own concepts' words.
        regularization: (n, width) states of ordinary captions.

    Returns:
        name -> merged weight.

    Raises:
        UserError: if a model lacks a projection, or as ``merge_projections``.
    """
    for number, model in enumerate(trained):
        if missing := originals.keys() - model.keys():
            raise UserError(
                f"Model {number + 1} of {len(trained)} lacks {len(missing)} projections, for instance "
                f"{min(missing)!r}; only models that trained keys and values of cross-attention can be merged."
            )
    texts = torch.cat([states.double() for states in concepts])
    metric = _metric(regularization)
    merged = {}
    for name, weight in originals.items():
        goal = torch.cat([states.double() @ model[name].double().T for model, states in zip(trained, concepts)])
        _check_shapes(weight, goal, texts, regularization)
        merged[name] = (weight.double() + _update(weight.double(), goal, texts, metric)).to(weight.dtype)
    return merged


def _metric(regularization: Tensor) -> Tensor:
    """(width, width) correlation of ordinary texts."""
    states = regularization.double()
    correlation = states.T @ states
    return correlation + _RIDGE * correlation.diagonal().mean() * torch.eye(states.shape[1]).to(correlation)


def _update(weight: Tensor, goal: Tensor, texts: Tensor, metric: Tensor) -> Tensor:
    """v^T d of the paper: d = C metric^-1, v^T = (V^T - W0 C^T) (d C^T)^-1."""
    directions = torch.linalg.solve(metric, texts.T).T  # (s, width)
    gram = directions @ texts.T  # (s, s), symmetric
    scale = gram.diagonal().clamp_min(torch.finfo(gram.dtype).tiny).rsqrt()
    values = torch.linalg.eigvalsh(gram * scale[:, None] * scale)
    if float(values[0]) < _RANK_TOLERANCE * float(values[-1]):
        raise UserError(
            "The texts of the concepts are not independent: two of them say the same. Merge models of different "
            "concepts, and name each by its own token."
        )
    return torch.linalg.solve(gram, (goal - texts @ weight.T)).T @ directions


def _check_shapes(original: Tensor, targets: Tensor, concepts: Tensor, regularization: Tensor) -> None:
    out, width = original.shape
    wanted = (len(concepts), out), (len(concepts), width), (len(regularization), width)
    given = tuple(targets.shape), tuple(concepts.shape), tuple(regularization.shape)
    if given != wanted:
        raise ValueError(
            f"For a weight of shape {(out, width)}, targets, concepts and regularization must have the shapes "
            f"{wanted}, got {given}."
        )
