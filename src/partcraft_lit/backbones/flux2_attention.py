"""Attention of part tokens in FLUX.2's double and single blocks, read while it is computed.

In both kinds of block, queries and keys are those of [text; image] in one sequence. What can be read:

- *probabilities*: of image queries for the keys of part tokens, in the softmax over all keys;
- *outputs*: what attention gives a part token and what it gives each place of the image, before the output projection.
  Their dot products show where a word is (ConceptAttention, arXiv 2502.04320).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from partcraft_lit.backbones.attention import AttentionCapture, outside_checkpointing
from partcraft_lit.backbones.joint_attention import Target, joint_token_probabilities, output_similarities


@dataclass
class _Seen:
    """What one attention layer computed in a forward pass: of image and text, or of both in one."""

    rotary: tuple[Tensor, Tensor] | None = None
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def clear(self) -> None:
        self.rotary = None
        for values in (self.queries, self.keys, self.outputs):
            values.clear()


class Flux2AttentionCapture(AttentionCapture):
    """Records what part tokens receive in layers of a Flux2Transformer2DModel, by forward hooks.

    No processor is replaced: outputs are the model's own to the bit, armed or not.

    Args:
        transformer: with its adapters in place.
        layer_names: module names of attention layers, like ``single_transformer_blocks.6.attn``.
        size: side of the returned maps; None for the model's own.
        target: what is recorded.

    Raises:
        ValueError: without a name, or if a name is not an attention layer of the transformer.
    """

    _kind = "transformer"
    _naming = "those of joint_attention_layers"

    def __init__(
        self,
        transformer: nn.Module,
        layer_names: Sequence[str],
        size: int | None = None,
        target: Target = "probabilities",
    ) -> None:
        self._target = target
        self._text_length = 0
        self._handles: list[RemovableHandle] = []
        super().__init__(transformer, layer_names, size)
        self._handles.append(transformer.register_forward_pre_hook(self._measure, with_kwargs=True))

    def remove(self) -> None:
        """Removes the hooks; a second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        super().remove()

    def _is_attention(self, layer: nn.Module) -> bool:
        return _is_joint(layer)

    def _processor(self, name: str, layer: Any) -> Any:
        """The layer's own; hooks watch it. A double block has norms and projections of its own for the text."""
        is_double, seen = hasattr(layer, "norm_added_q"), _Seen()

        def begin(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.clear()
            seen.rotary = kwargs["image_rotary_emb"]

        def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.positions is not None:
                self._read(name, seen, self.positions)
            seen.clear()

        handles = [layer.register_forward_pre_hook(begin, with_kwargs=True)]
        for values, norms in ((seen.queries, ("norm_q", "norm_added_q")), (seen.keys, ("norm_k", "norm_added_k"))):
            for norm in norms[: 1 + is_double]:
                handles.append(getattr(layer, norm).register_forward_hook(self._keep_result(values)))
        if self._target == "outputs":
            projections = (layer.to_add_out, layer.to_out[0]) if is_double else (layer.to_out,)
            # A single block projects [attention, feed-forward] at once.
            keep = self._keep_argument(seen.outputs, layer.inner_dim)
            handles += [projection.register_forward_pre_hook(keep) for projection in projections]
        self._handles += [*handles, layer.register_forward_hook(end)]
        return layer.processor

    def _measure(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._text_length = kwargs["encoder_hidden_states"].shape[1]

    def _keep_result(self, values: list[Tensor]) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            if self.positions is not None:
                values.append(output)

        return keep

    def _keep_argument(self, values: list[Tensor], width: int) -> Callable[..., None]:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if self.positions is not None:
                values.append(args[0][..., :width])

        return keep

    @torch.compiler.disable
    def _read(self, name: str, seen: _Seen, positions: Tensor) -> None:
        with outside_checkpointing():
            if self._target == "outputs":
                self.record(name, self._similarities(torch.cat(seen.outputs, dim=1), positions))
            else:
                self.record(name, self._probabilities(seen, positions))

    def _probabilities(self, seen: _Seen, positions: Tensor) -> Tensor:
        from diffusers.models.embeddings import apply_rotary_emb

        # (B, tokens, heads, width); those of the text are computed last and come first.
        query, key = (torch.cat(values[::-1], dim=1) for values in (seen.queries, seen.keys))
        query = query[:, self._text_length :]
        if seen.rotary is not None:
            cos, sin = seen.rotary
            query = apply_rotary_emb(query, (cos[self._text_length :], sin[self._text_length :]), sequence_dim=1)
            key = apply_rotary_emb(key, (cos, sin), sequence_dim=1)
        return joint_token_probabilities(query.transpose(1, 2), key.transpose(1, 2), None, positions)

    def _similarities(self, output: Tensor, positions: Tensor) -> Tensor:
        text, image = output[:, : self._text_length], output[:, self._text_length :]
        side = math.isqrt(image.shape[1])
        index = positions.clamp_min(0)[:, :, None].expand(-1, -1, text.shape[-1])
        return output_similarities(text.gather(1, index), image, positions >= 0).unflatten(2, (side, side))


def joint_attention_layers(transformer: nn.Module) -> tuple[str, ...]:
    """Module names of all attention layers, in the order of the forward pass."""
    return tuple(name for name, module in transformer.named_modules() if _is_joint(module))


def _is_joint(module: nn.Module) -> bool:
    from diffusers.models.transformers.transformer_flux2 import Flux2Attention, Flux2ParallelSelfAttention

    return isinstance(module, Flux2Attention | Flux2ParallelSelfAttention)
