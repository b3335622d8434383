"""Which cross-attention layers a UNet has, and reading their probabilities while it runs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partcraft_lit.backbones.cpu_attention import CpuAttnProcessor, attention, uses_explicit_attention


def cross_attention_sides(unet: Any, latent_size: int) -> dict[str, int]:
    """Side of the map of every cross-attention layer, by arithmetic on the UNet's blocks.

    Args:
        unet: a UNet2DConditionModel (or anything with down_blocks, mid_block and up_blocks of diffusers' classes).
        latent_size: side of square latents.

    Returns:
        Module name inside the UNet -> side, in the order in which the forward pass meets them.
    """
    sides: dict[str, int] = {}
    side, skipped = latent_size, []
    for index, block in enumerate(unet.down_blocks):
        skipped.append(side)
        sides.update(_cross_attentions(block, f"down_blocks.{index}", side))
        if getattr(block, "downsamplers", None) is not None:
            side = (side + 1) // 2  # a convolution of stride 2 with padding 1
    sides.update(_cross_attentions(unet.mid_block, "mid_block", side))
    for index, (block, side) in enumerate(zip(unet.up_blocks, reversed(skipped), strict=True)):
        sides.update(_cross_attentions(block, f"up_blocks.{index}", side))
    return sides


def _cross_attentions(block: Any, prefix: str, side: int) -> dict[str, int]:
    if block is None:
        return {}
    return {f"{prefix}.{name}": side for name, _ in block.named_modules() if name.rpartition(".")[2] == "attn2"}


class AttentionCapture:
    """Reads attention probabilities of part tokens from chosen layers.

    Only the named layers get another processor, once. Its output is that of diffusers' ``AttnProcessor2_0``, bit for
    bit (in bfloat16 on a CPU to rounding), and does not depend on whether the capture is armed; while it is, the
    probabilities of the asked columns are recorded, computed in float32 outside autocast. Gradients flow through the
    maps, also under (non-reentrant) gradient checkpointing, and the capture need not be armed during ``backward``.

    Args:
        unet: where the layers are; adapters may be added before or after.
        layer_names: module names of attention layers, like ``down_blocks.2.attentions.0.transformer_blocks.0.attn2``.
        size: side of the maps that are handed out; None keeps that of the first layer.

    Raises:
        ValueError: if there is no name, or a name is not an attention layer of the UNet.
    """

    def __init__(self, unet: nn.Module, layer_names: Sequence[str], size: int | None = None) -> None:
        if not layer_names:
            raise ValueError("AttentionCapture needs at least one layer name; see Backbone.attention_layers.")
        self.size = size
        self._positions: Tensor | None = None
        self._maps: dict[str, Tensor] = {}
        self._originals: list[tuple[Any, Any]] = []
        for name, layer in [(name, _attention_layer(unet, name)) for name in layer_names]:
            self._originals.append((layer, layer.processor))
            layer.set_processor(_CapturingProcessor(self, name))

    @contextmanager
    def armed(self, token_positions: Tensor) -> Iterator[Self]:
        """Forward passes inside are recorded; ``maps`` then gives those of the last one.

        Args:
            token_positions: (B, T) places in the text, -1 where a prompt has fewer than T part tokens.
        """
        self.clear()
        self._positions = token_positions
        try:
            yield self
        finally:
            self._positions = None

    def maps(self) -> Tensor:
        """(B, T, s, s) probabilities, mean over heads and layers, float32; zeros for unused places.

        A map of another side than s is resized: averaged over areas when it is larger, bilinearly when smaller.

        Raises:
            RuntimeError: if no forward pass ran while the capture was armed.
        """
        maps = list(self.layer_maps().values())
        size = self.size or maps[0].shape[-1]
        return torch.stack([_resize(layer_map, size) for layer_map in maps]).mean(dim=0)

    def layer_maps(self) -> dict[str, Tensor]:
        """Layer name -> (B, T, side, side) probabilities, mean over heads, at the layer's own side."""
        if not self._maps:
            raise RuntimeError("No attention was captured: run the UNet inside `with capture.armed(positions):` first.")
        return dict(self._maps)

    def clear(self) -> None:
        """Lets go of the recorded maps."""
        self._maps = {}

    def remove(self) -> None:
        """Puts the layers' own processors back; a second call does nothing."""
        for layer, processor in self._originals:
            layer.set_processor(processor)
        self._originals = []
        self.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @torch.compiler.disable
    def _record(self, name: str, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        if self._positions is not None:
            self._maps[name] = token_probabilities(query, key, mask, self._positions)

    @torch.compiler.disable
    def _record_columns(self, name: str, probabilities: Tensor) -> None:
        if self._positions is not None:
            self._maps[name] = _token_columns(probabilities, self._positions)


class _CapturingProcessor(CpuAttnProcessor):
    """Attention that shows a capture its probabilities, or where it forms none, what they are made from."""

    def __init__(self, capture: AttentionCapture, name: str) -> None:
        self.capture = capture
        self.name = name

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if not uses_explicit_attention(query, key, mask):
            self.capture._record(self.name, query, key, mask)
            return attention(query, key, value, mask)
        # Formed once, and also while nothing is recorded: the recomputation of gradient checkpointing has to agree.
        probabilities = _probabilities(query, key)
        self.capture._record_columns(self.name, probabilities)
        with torch.autocast(value.device.type, enabled=False):
            return probabilities.to(value.dtype) @ value


def token_probabilities(query: Tensor, key: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
    """Softmax attention of every place for some tokens of the text.

    Args:
        query: (B, heads, side * side, width).
        key: (B, heads, L, width).
        mask: added to the scores, broadcastable to (B, heads, side * side, L), or None.
        positions: (B, T) in 0...L-1, negative where unused.

    Returns:
        (B, T, side, side), mean over heads, float32; zeros for unused places. Differentiable once, not twice.

    Raises:
        ValueError: if batches differ or the places form no square.
    """
    with _kept():
        return _token_columns(_probabilities(query, key, mask), positions)


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, heads, places, L), float32."""
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
        return (scores if mask is None else scores + mask.float()).softmax(dim=-1)


def _token_columns(probabilities: Tensor, positions: Tensor) -> Tensor:
    """What ``token_probabilities`` returns, of probabilities that are there."""
    side = math.isqrt(probabilities.shape[2])
    if side * side != probabilities.shape[2]:
        raise ValueError(f"Attention maps must be square, got {probabilities.shape[2]} places; use square images.")
    if len(positions) != len(probabilities):
        raise ValueError(f"token_positions is for {len(positions)} prompts, the UNet got {len(probabilities)}.")
    with _kept():
        mean = probabilities.mean(dim=1).transpose(1, 2)  # (B, L, places)
        used = (positions >= 0)[:, :, None]
        index = positions.clamp_min(0)[:, :, None].expand(-1, -1, mean.shape[-1])
        return (mean.gather(1, index) * used).unflatten(2, (side, side))


def _kept() -> AbstractContextManager[object]:
    """Inside gradient checkpointing, what is computed here does not count among what the checkpoint expects again.

    The recomputation runs in backward, when the capture is no longer armed. So these operations keep their tensors.
    Detached: a result that its own node keeps with its graph would be a reference cycle, which frees memory late.
    """
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


def _attention_layer(unet: nn.Module, name: str) -> Any:
    from diffusers.models.attention_processor import Attention

    try:
        layer = unet.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, Attention):
        raise ValueError(f"{name!r} is no attention layer of this UNet; see cross_attention_sides for the names.")
    return layer


def _resize(maps: Tensor, size: int) -> Tensor:
    if maps.shape[-1] == size:
        return maps
    if maps.shape[-1] > size:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
