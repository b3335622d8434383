"""A backbone on diffusers' PRXTransformer2DModel: image tokens attend to [text; image], the text is never updated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partcraft_lit.backbones.attention import AttentionCapture
from partcraft_lit.backbones.joint_attention import Target, joint_token_probabilities, value_similarities
from partcraft_lit.backbones.latent_model import LatentModel, Precision
from partcraft_lit.backbones.lora import check_scope
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Conditioning, Flow

#: The blocks between these shares of the depth are captured.
_FIRST, _LAST = 0.25, 0.75


class PrxModel(LatentModel):
    """The transformer and a VAE; subclasses implement ``encode_text``.

    Args:
        name: for logs and metadata.
        transformer: diffusers' PRXTransformer2DModel.
        vae: AutoencoderKL or AutoencoderDC.
        text_encoder, tokenizer: of transformers.
        scheduler: FlowMatchEulerDiscreteScheduler.
        flow: how timesteps are drawn in training.
        resolution: side of the square images in pixels.
        attention_blocks: numbers of the blocks whose attention is read; None for the middle half.
        attention_target: what is captured of them: "probabilities", or "outputs", see ``value_similarities``.
        dtype, vae_dtype: see ``LatentModel``.

    Raises:
        UserError: for a resolution or blocks that the model does not have.
    """

    denoiser_name = "transformer"
    pipeline = "PRXPipeline"
    flow: Flow | None = Flow()  # of each model once it is loaded
    transformer: nn.Module

    def __init__(
        self,
        *,
        name: str,
        transformer: Any,
        vae: Any,
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        flow: Flow,
        resolution: int,
        attention_blocks: Sequence[int] | None = None,
        attention_target: Target = "probabilities",
        dtype: torch.dtype | Precision = torch.float32,
        vae_dtype: torch.dtype | Precision = torch.float32,
    ) -> None:
        factor = _vae_scale_factor(vae)
        step = checked_step(resolution, factor, int(transformer.config.patch_size))
        blocks = _checked_blocks(attention_blocks, len(transformer.blocks))
        super().__init__(
            name=name,
            denoiser=transformer,
            vae=vae,
            text_encoders=[text_encoder],
            tokenizers=[tokenizer],
            noise_scheduler=scheduler,
            resolution=resolution,
            vae_scale_factor=factor,
            latent_channels=int(transformer.config.in_channels),
            attention_size=resolution // step,
            attention_layers=tuple(f"blocks.{number}.attention" for number in blocks),
            dtype=dtype,
            vae_dtype=vae_dtype,
        )
        self.flow = flow
        self.attention_target = attention_target

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The velocity for (B, C, h, w) latents at (B,) timesteps from 0 to 1000, in float32."""
        dtype = self.dtype
        output = self.transformer(
            hidden_states=noisy_latents.to(dtype),
            timestep=timesteps.float() / self.noise_scheduler.config.num_train_timesteps,
            encoder_hidden_states=conditioning.encoder_hidden_states.to(dtype),
            attention_mask=conditioning.attention_mask,
            return_dict=False,
        )
        return cast(Tensor, output[0]).float()

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Of a variational autoencoder, or one without variance."""
        output = self.vae.encode(pixels)  # type: ignore[operator]
        if hasattr(output, "latent_dist"):
            return output.latent_dist.mean, output.latent_dist.std
        return output.latent, torch.zeros_like(output.latent)

    def readable_attention(self) -> dict[str, tuple[str, ...]]:
        """Both targets, of all blocks."""
        return dict.fromkeys(get_args(Target), tuple(self._attentions()))

    def capture_attention(self, layers: Sequence[str] | None = None, target: str | None = None) -> AttentionCapture:
        """Probabilities of text tokens among all keys, or their shares of the similarity of outputs."""
        chosen = cast(Target, target or self.attention_target)
        return PrxAttentionCapture(self.transformer, layers or self.attention_layers, self.attention_size, chosen)

    def lora_targets(self, scope: str) -> list[str]:
        """ "cross": keys and values of the text; "all": also those of the image, its queries, and the output."""
        check_scope(scope)
        parts = ("txt_kv_proj",) if scope == "cross" else ("txt_kv_proj", "img_qkv_proj", "to_out.0")
        return [f"{block}.{part}" for block in self._attentions() for part in parts]

    def cross_kv(self) -> list[tuple[str, nn.Parameter]]:
        """Keys and values of the text: one matrix per block."""
        return [(name, p) for name, p in self.transformer.named_parameters() if name.endswith("txt_kv_proj.weight")]

    def _compile(self, backend: str) -> None:
        for block in cast(Any, self.transformer).blocks:
            block.compile(backend=backend, dynamic=False)

    def _attentions(self) -> list[str]:
        return [f"blocks.{number}.attention" for number in range(len(cast(Any, self.transformer).blocks))]


class PrxAttentionCapture(AttentionCapture):
    """Capture of ``PRXAttention`` layers; outputs are those of diffusers' processor, armed or not."""

    _kind = "transformer"
    _naming = "blocks.N.attention"

    def __init__(
        self,
        transformer: nn.Module,
        layer_names: Sequence[str],
        size: int | None = None,
        target: Target = "probabilities",
    ) -> None:
        self.target: Target = target
        super().__init__(transformer, layer_names, size)

    def _is_attention(self, layer: nn.Module) -> bool:
        from diffusers.models.transformers.transformer_prx import PRXAttention

        return isinstance(layer, PRXAttention)

    def _processor(self, name: str, layer: Any) -> Any:
        return _CapturingProcessor(self, name)


class _CapturingProcessor:
    """diffusers' ``PRXAttnProcessor2_0`` with the columns of part tokens beside it."""

    def __init__(self, capture: PrxAttentionCapture, name: str) -> None:
        self.capture, self.name = capture, name

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Tensor | None = None,
    ) -> Tensor:
        # Same operations in the same order as the original, for equal outputs. All are (B, heads, tokens, width).
        query, image_key, image_value = _heads(attn, attn.img_qkv_proj(hidden_states), 3)
        text_key, text_value = _heads(attn, attn.txt_kv_proj(encoder_hidden_states), 2)
        query, image_key, text_key = attn.norm_q(query), attn.norm_k(image_key), attn.norm_added_k(text_key)
        if image_rotary_emb is not None:
            query, image_key = _rotated(query, image_rotary_emb), _rotated(image_key, image_rotary_emb)
        key, value = torch.cat([text_key, image_key], dim=2), torch.cat([text_value, image_value], dim=2)
        mask = None
        if attention_mask is not None:
            seen = torch.ones(hidden_states.shape[:2], dtype=torch.bool, device=query.device)
            mask = torch.cat([attention_mask.to(query.device, torch.bool), seen], dim=1)
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if mask is None else mask[:, None, None, :]
        )
        self._record(query, key, mask, output, text_value)
        return cast(Tensor, attn.to_out[1](attn.to_out[0](output.transpose(1, 2).flatten(2))))

    @torch.compiler.disable
    def _record(self, query: Tensor, key: Tensor, mask: Tensor | None, output: Tensor, text_value: Tensor) -> None:
        if (positions := self.capture.positions) is None:
            return
        if self.capture.target == "outputs":
            self.capture.record(self.name, value_similarities(output, text_value, positions))
        else:
            self.capture.record(self.name, joint_token_probabilities(query, key, mask, positions))


def _heads(attn: Any, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
    """(B, tokens, parts * heads * width) -> ``parts`` of (B, heads, tokens, width)."""
    return projected.unflatten(2, (parts, attn.heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)


def _rotated(values: Tensor, rotary: Tensor) -> Tensor:
    from diffusers.models.transformers.transformer_prx import apply_rope

    return cast(Tensor, apply_rope(values, rotary))


def check_attention_size(backbone: PrxModel, attention_size: int | None) -> None:
    """Checks ``backbone.attention_size``, of which these models have one.

    Raises:
        UserError: for any other.
    """
    if attention_size not in (None, backbone.attention_size):
        raise UserError(
            f"backbone.attention_size={attention_size}: all attention maps of this model are "
            f"{backbone.attention_size} x {backbone.attention_size} at {backbone.resolution} px; set it to null."
        )


def checked_step(resolution: int, vae_scale_factor: int, patch_size: int) -> int:
    """Pixels of an image token's side.

    Raises:
        UserError: if the resolution is not a multiple of it.
    """
    step = vae_scale_factor * patch_size
    if resolution < step or resolution % step:
        raise UserError(
            f"backbone.resolution={resolution} does not fit this model: it must be a multiple of {step} (VAE "
            f"{vae_scale_factor} x patches of {patch_size})."
        )
    return step


def captured_blocks(count: int) -> list[int]:
    """The middle half of so many blocks."""
    return list(range(int(_FIRST * count), max(int(_LAST * count), int(_FIRST * count) + 1)))


def _vae_scale_factor(vae: Any) -> int:
    factor = getattr(vae, "spatial_compression_ratio", None)
    return int(factor) if factor else 2 ** (len(vae.config.block_out_channels) - 1)


def _checked_blocks(blocks: Sequence[int] | None, count: int) -> list[int]:
    if blocks is None:
        return captured_blocks(count)
    if not blocks or not all(0 <= number < count for number in blocks):
        raise UserError(
            f"backbone.attention_blocks={list(blocks)}: wanted one or more of 0 to {count - 1}, the blocks of this "
            "model; null takes the middle half."
        )
    return sorted(set(blocks))
