"""Cross-attention layers of a UNet, and capturing their probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partcraft_lit.backbones.cpu_attention import CpuAttnProcessor, attention, uses_explicit_attention


def cross_attention_sides(unet: Any, latent_size: int) -> dict[str, int]:
    """Side of every cross-attention layer's map, computed from the UNet's blocks.

    Args:
        unet: a UNet2DConditionModel (or anything with down_blocks, mid_block and up_blocks of diffusers' classes).
        latent_size: side of square latents.

    Returns:
        Module name inside the UNet -> side, in the order of the forward pass.
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
    """Captures the attention probabilities of part tokens in chosen layers.

    The processors of the named layers are replaced once. Outputs are those of ``CpuAttnProcessor``, armed or not; while
    armed, the requested columns of the probabilities are recorded, in float32 outside autocast. Gradients flow through
    the maps, also under (non-reentrant) gradient checkpointing; the capture need not be armed during ``backward``.

    Args:
        unet: adapters may be added before or after.
        layer_names: module names of attention layers, like ``down_blocks.2.attentions.0.transformer_blocks.0.attn2``.
        size: side of the returned maps; None keeps that of the first layer.

    Raises:
        ValueError: without a name, or if a name is not an attention layer of the UNet.
    """

    #: For messages: the kind of denoiser, and how its layers are named.
    _kind: ClassVar[str] = "UNet"
    _naming: ClassVar[str] = "those of cross_attention_sides"

    def __init__(self, unet: nn.Module, layer_names: Sequence[str], size: int | None = None) -> None:
        if not layer_names:
            raise ValueError("AttentionCapture needs at least one layer name; see Backbone.attention_layers.")
        self.size = size
        self._positions: Tensor | None = None
        self._maps: dict[str, Tensor] = {}
        self._originals: list[tuple[Any, Any]] = []
        for name, layer in [(name, self._layer(unet, name)) for name in layer_names]:
            self._originals.append((layer, layer.processor))
            layer.set_processor(self._processor(name, layer))

    def _layer(self, denoiser: nn.Module, name: str) -> Any:
        """The attention layer of this name."""
        try:
            layer = denoiser.get_submodule(name)
        except AttributeError:
            layer = None
        if layer is None or not self._is_attention(layer):
            raise ValueError(f"{name!r} is not an attention layer of this {self._kind}; names are {self._naming}.")
        return layer

    def _is_attention(self, layer: nn.Module) -> bool:
        """Whether the layer is of the class that is captured; overridden for denoisers of other classes."""
        from diffusers.models.attention_processor import Attention

        return isinstance(layer, Attention)

    def _processor(self, name: str, layer: Any) -> Any:
        """A processor that records, with the outputs of the layer's own."""
        return _CapturingProcessor(self, name)

    @contextmanager
    def armed(self, token_positions: Tensor) -> Iterator[Self]:
        """Records forward passes; ``maps`` returns those of the last one.

        Args:
            token_positions: (B, T) positions in the text, -1 where a prompt has fewer than T part tokens.
        """
        self.clear()
        self._positions = token_positions
        try:
            yield self
        finally:
            self._positions = None

    def maps(self) -> Tensor:
        """(B, T, s, s) probabilities, mean over heads and layers, float32; zeros at unused positions.

        Larger maps are resized by area averaging, smaller ones bilinearly.

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
        """Drops the recorded maps."""
        self._maps = {}

    def remove(self) -> None:
        """Restores the layers' processors; a second call does nothing."""
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

    @property
    def positions(self) -> Tensor | None:
        """(B, T) positions of part tokens while armed, else None."""
        return self._positions

    def record(self, name: str, layer_map: Tensor) -> None:
        """Takes (B, T, side, side) probabilities of a layer, mean over heads."""
        self._maps[name] = layer_map

    @torch.compiler.disable
    def _record(self, name: str, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        if self._positions is not None:
            self._maps[name] = token_probabilities(query, key, mask, self._positions)

    @torch.compiler.disable
    def _record_columns(self, name: str, probabilities: Tensor) -> None:
        if self._positions is not None:
            self._maps[name] = _token_columns(probabilities, self._positions)


class _CapturingProcessor(CpuAttnProcessor):
    """Hands the probabilities to a capture, or query and key where attention materialises none."""

    def __init__(self, capture: AttentionCapture, name: str) -> None:
        self.capture = capture
        self.name = name

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        if not uses_explicit_attention(query, key, mask):
            self.capture._record(self.name, query, key, mask)
            return attention(query, key, value, mask)
        # Also while nothing is recorded: the recomputation of gradient checkpointing has to agree.
        probabilities = _probabilities(query, key)
        self.capture._record_columns(self.name, probabilities)
        with torch.autocast(value.device.type, enabled=False):
            return probabilities.to(value.dtype) @ value


def token_probabilities(query: Tensor, key: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
    """Softmax attention of every pixel to some tokens of the text.

    Args:
        query: (B, heads, side * side, width).
        key: (B, heads, L, width).
        mask: added to the scores, broadcastable to (B, heads, side * side, L), or None.
        positions: (B, T) in 0...L-1, negative where unused.

    Returns:
        (B, T, side, side), mean over heads, float32; zeros at unused positions. Differentiable once, not twice.

    Raises:
        ValueError: if batch sizes differ or the map is not square.
    """
    with outside_checkpointing():
        return _token_columns(_probabilities(query, key, mask), positions)


def _probabilities(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, heads, pixels, L), float32."""
    with torch.autocast(query.device.type, enabled=False):
        scores = (query.float() * query.shape[-1] ** -0.5) @ key.float().transpose(-1, -2)
        return (scores if mask is None else scores + mask.float()).softmax(dim=-1)


def _token_columns(probabilities: Tensor, positions: Tensor) -> Tensor:
    """(B, heads, pixels, L) probabilities -> (B, T, side, side), as ``token_probabilities``."""
    side = math.isqrt(probabilities.shape[2])
    if side * side != probabilities.shape[2]:
        raise ValueError(f"Attention maps must be square, got {probabilities.shape[2]} pixels; use square images.")
    if len(positions) != len(probabilities):
        raise ValueError(f"token_positions is for {len(positions)} prompts, the UNet got {len(probabilities)}.")
    with outside_checkpointing():
        mean = probabilities.mean(dim=1).transpose(1, 2)  # (B, L, pixels)
        used = (positions >= 0)[:, :, None]
        index = positions.clamp_min(0)[:, :, None].expand(-1, -1, mean.shape[-1])
        return (mean.gather(1, index) * used).unflatten(2, (side, side))


def outside_checkpointing() -> AbstractContextManager[object]:
    """Keeps these saved tensors out of activation checkpointing: its recomputation runs when nothing is armed.

    Detached, since a node that saves its own result with its graph is a reference cycle, which frees memory late.
    """
    return torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor.detach(), lambda tensor: tensor)


def _resize(maps: Tensor, size: int) -> Tensor:
    if maps.shape[-1] == size:
        return maps
    if maps.shape[-1] > size:
        return F.adaptive_avg_pool2d(maps, size)
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
