"""Attention processor with a CPU fast path: explicit probabilities where torch's fused kernel is slower."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Up to this many keys explicit probabilities in bfloat16 on a CPU are faster than torch's fused kernel, whose backward
#: pass works in float32 blocks: two to five times at 77 keys, slower from 1024 on (``benchmarks/README.md``).
MAX_EXPLICIT_KEYS = 512


class CpuAttnProcessor:
    """diffusers' ``AttnProcessor2_0`` around :func:`attention`.

    Bit-identical to it except for bfloat16 on a CPU with up to ``MAX_EXPLICIT_KEYS`` keys, where it differs by
    rounding.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        # Same operations in the same order as the original, for bit-identical outputs.
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        spatial = hidden_states.shape[2:] if hidden_states.ndim == 4 else None
        if spatial is not None:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, h * w, C)
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        batch = context.shape[0]
        if attention_mask is not None:
            attention_mask = attn.prepare_attention_mask(attention_mask, context.shape[1], batch)
            attention_mask = attention_mask.view(batch, attn.heads, -1, attention_mask.shape[-1])
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        if encoder_hidden_states is None:
            context = hidden_states
        query = attn.to_q(hidden_states)
        if encoder_hidden_states is not None and attn.norm_cross:
            context = attn.norm_encoder_hidden_states(context)
        query, key, value = (
            states.view(batch, -1, attn.heads, states.shape[-1] // attn.heads).transpose(1, 2)  # (B, heads, *, width)
            for states in (query, attn.to_k(context), attn.to_v(context))
        )
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)

        hidden_states = self._attention(query, key, value, attention_mask)

        hidden_states = hidden_states.transpose(1, 2).flatten(2).to(query.dtype)  # (B, h * w, C)
        hidden_states = attn.to_out[1](attn.to_out[0](hidden_states))
        if spatial is not None:
            hidden_states = hidden_states.transpose(-1, -2).unflatten(2, spatial)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Overridden by processors that record attention."""
        return attention(query, key, value, mask)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention through the faster kernel for device and dtype.

    Args:
        query: (B, heads, pixels, width).
        key, value: (B, heads, L, width).
        mask: added to the scores, broadcastable to (B, heads, pixels, L), or None.

    Returns:
        (B, heads, pixels, width).
    """
    if not uses_explicit_attention(query, key, mask):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    # Autocast would cast the scores to float32, which is slow; softmax accumulates in it anyway.
    with torch.autocast(query.device.type, enabled=False):
        return ((query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)).softmax(dim=-1) @ value


def uses_explicit_attention(query: Tensor, key: Tensor, mask: Tensor | None) -> bool:
    """Whether ``attention`` materialises the probabilities; arguments as there."""
    is_short = query.dtype == key.dtype == torch.bfloat16 and key.shape[2] <= MAX_EXPLICIT_KEYS
    return query.device.type == "cpu" and is_short and mask is None
