"""Attention of image tokens to single text tokens where both are keys of one softmax: only these columns are formed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from partcraft_lit.backbones.attention import outside_checkpointing

#: What a loss reads: attention probabilities, or similarities of attention outputs.
Target = Literal["probabilities", "outputs"]

#: Score of what takes no part in a softmax; finite, so that a row of nothing else has no NaN.
_NEVER = -1e9
#: Scores that are formed at a time, of all samples and heads: 32 MB.
_SCORES = 2**23


def joint_token_probabilities(query: Tensor, key: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
    """Share of the attention of every image token that goes to some text tokens.

    The probabilities are exp(score - logsumexp(all scores)): the scores of all keys are formed for a few queries at a
    time and never kept, neither for the backward pass, which forms them again.

    Args:
        query: (B, heads, side * side, width) of image tokens.
        key: (B, heads, L, width) of all tokens, text and image.
        mask: (B, L) bool, False at keys that nothing attends to; None for none.
        positions: (B, T) of text tokens among the keys, negative where unused.

    Returns:
        (B, T, side, side), mean over heads, float32; zeros at unused positions. Differentiable once.

    Raises:
        ValueError: if batch sizes differ or the map is not square.
    """
    side = math.isqrt(query.shape[2])
    if side * side != query.shape[2]:
        raise ValueError(f"Attention maps must be square, got {query.shape[2]} image tokens; use square images.")
    if len(positions) != len(query):
        raise ValueError(f"token_positions is for {len(positions)} prompts, the denoiser got {len(query)}.")
    with outside_checkpointing(), torch.autocast(query.device.type, enabled=False):
        scaled, key = query.float() * query.shape[-1] ** -0.5, key.float()
        total = _LogSumExp.apply(scaled, key, mask)  # (B, heads, side * side)
        index = positions.clamp_min(0)[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[-1])
        scores = scaled @ key.gather(2, index).transpose(-1, -2)  # (B, heads, side * side, T)
        probabilities = (scores - total[..., None]).exp().mean(dim=1).transpose(1, 2)
        return (probabilities * (positions >= 0)[:, :, None]).unflatten(2, (side, side))


def output_similarities(words: Tensor, image: Tensor, used: Tensor) -> Tensor:
    """Shares of a prompt's part tokens in each place of the image, from attention outputs.

    Args:
        words: (B, T, D) output of each part token.
        image: (B, N, D) output of each place.
        used: (B, T) bool.

    Returns:
        (B, T, N), float32: softmax over the used part tokens of the dot products over the square root of D; zeros where
        unused.

    Source: ConceptAttention, arXiv 2502.04320. Differs: the scale, without which wide outputs saturate the softmax.
    """
    with torch.autocast(words.device.type, enabled=False):
        scores = (words.float() * words.shape[-1] ** -0.5) @ image.float().transpose(1, 2)
    return scores.masked_fill(~used[:, :, None], _NEVER).softmax(dim=1) * used[:, :, None]


def value_similarities(image_outputs: Tensor, value: Tensor, positions: Tensor) -> Tensor:
    """``output_similarities`` where the text is never updated and so has no attention output.

    A part token's output is what it would get that attends to itself alone: its value.

    Args:
        image_outputs: (B, heads, side * side, width), before the output projection.
        value: (B, heads, L, width) of the text.
        positions: (B, T) of part tokens in the text, negative where unused.

    Returns:
        (B, T, side, side) float32; sums to 1 over the part tokens of a prompt, zeros at unused positions.
    """
    side = math.isqrt(image_outputs.shape[2])
    with outside_checkpointing():
        index = positions.clamp_min(0)[:, None, :, None].expand(-1, value.shape[1], -1, value.shape[-1])
        words = value.gather(2, index)
        words, image = (states.transpose(1, 2).flatten(2) for states in (words, image_outputs))  # (B, *, heads * width)
        return output_similarities(words, image, positions >= 0).unflatten(2, (side, side))


class _LogSumExp(torch.autograd.Function):
    """logsumexp over keys of query @ key, (B, heads, queries)."""

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
        total = torch.cat([_scores(part, key, mask).logsumexp(dim=-1) for part in _parts(query, key)], dim=2)
        context.save_for_backward(query, key, mask, total)
        return total

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        query, key, mask, total = context.saved_tensors
        query_gradient, key_gradient, start = [], torch.zeros_like(key), 0
        for part in _parts(query, key):
            rows = slice(start, start + part.shape[2])
            weights = (_scores(part, key, mask) - total[:, :, rows, None]).exp() * gradient[:, :, rows, None]
            query_gradient.append(weights @ key)
            key_gradient += weights.transpose(-1, -2) @ part
            start = rows.stop
        return torch.cat(query_gradient, dim=2), key_gradient, None


def _parts(query: Tensor, key: Tensor) -> Iterator[Tensor]:
    """Queries in parts whose scores are few."""
    rows = max(1, _SCORES // (query.shape[0] * query.shape[1] * key.shape[2]))
    yield from query.split(rows, dim=2)


def _scores(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    scores = query @ key.transpose(-1, -2)
    return scores if mask is None else scores.masked_fill(~mask[:, None, None, :], -math.inf)
