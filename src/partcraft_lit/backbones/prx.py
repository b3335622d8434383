"""PRX: a transformer whose image tokens attend to [text; image], T5Gemma's last layer, flow matching."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from partcraft_lit.backbones.attention import AttentionCapture
from partcraft_lit.backbones.joint_attention import joint_token_probabilities
from partcraft_lit.backbones.latent_model import LatentModel, Precision, check_hash
from partcraft_lit.backbones.lora import check_scope
from partcraft_lit.backbones.prx_loading import PrxComponents, load_prx_components
from partcraft_lit.backbones.text import overwritten_embeddings
from partcraft_lit.backbones.text_format import PromptFormat, around
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Conditioning, Flow, TokenizedPrompts

#: Positions of the text, as the models were trained.
PROMPT_LENGTH = 256
#: Share of the blocks that come before the captured ones: early blocks arrange, late ones draw.
_FIRST, _LAST = 0.25, 0.75


class PRX(LatentModel):
    """PRX at one resolution.

    Args:
        transformer: diffusers' PRXTransformer2DModel.
        vae: AutoencoderKL or AutoencoderDC.
        text_encoder: transformers' T5GemmaEncoder.
        tokenizer: its fast tokenizer.
        scheduler: FlowMatchEulerDiscreteScheduler.
        resolution: side of the square images in pixels.
        attention_blocks: numbers of the blocks whose attention is read; None for the middle half.
        max_length: positions of the text; None for the tokenizer's own, at most ``PROMPT_LENGTH``.
        name, dtype, vae_dtype: see ``LatentModel``.

    Raises:
        UserError: for a resolution or blocks that the model does not have.

    Source: diffusers' PRXPipeline. Differs: a prompt that is too long is refused and not cut.
    """

    denoiser_name = "transformer"
    flow = Flow(density="logit_normal", uniform_share=0.1)  # with the scheduler's shift once it is known
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
        resolution: int,
        attention_blocks: Sequence[int] | None = None,
        max_length: int | None = None,
        dtype: torch.dtype | Precision = torch.float32,
        vae_dtype: torch.dtype | Precision = torch.float32,
    ) -> None:
        factor = _vae_scale_factor(vae)
        step = factor * int(transformer.config.patch_size)
        if resolution < step or resolution % step:
            raise UserError(
                f"backbone.resolution={resolution} does not fit this model: it must be a multiple of {step} (VAE "
                f"{factor} x patches of {step // factor})."
            )
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
        self.flow = training_flow(scheduler)
        prefix, suffix = around(tokenizer)
        length = max_length or min(int(tokenizer.model_max_length), PROMPT_LENGTH)
        self.text_format = PromptFormat(tokenizer, length, clean_prompt, prefix, suffix)

    def encode_text(self, tokens: TokenizedPrompts, part_vectors: Tensor | None) -> Conditioning:
        """The last layer of the text encoder, and the mask of its padding."""
        encoder, (input_ids,) = self.text_encoders[0], tokens.input_ids
        if part_vectors is None:
            output = encoder(input_ids=input_ids, attention_mask=tokens.attention_mask)
        else:
            with overwritten_embeddings(encoder, tokens.part_positions, part_vectors):
                output = encoder(input_ids=input_ids, attention_mask=tokens.attention_mask)
        return Conditioning(output.last_hidden_state, attention_mask=tokens.attention_mask)

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

    def capture_attention(self) -> AttentionCapture:
        """Probabilities of text tokens among all keys, text and image."""
        return PrxAttentionCapture(self.transformer, self.attention_layers, self.attention_size)

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

    def _layer(self, denoiser: nn.Module, name: str) -> Any:
        from diffusers.models.transformers.transformer_prx import PRXAttention

        try:
            layer = denoiser.get_submodule(name)
        except AttributeError:
            layer = None
        if not isinstance(layer, PRXAttention):
            raise ValueError(f"{name!r} is no attention layer of this transformer; names are blocks.N.attention.")
        return layer

    def _processor(self, name: str, layer: Any) -> Any:
        return _CapturingProcessor(self, name)


class _CapturingProcessor:
    """diffusers' ``PRXAttnProcessor2_0`` with the columns of part tokens beside it."""

    def __init__(self, capture: AttentionCapture, name: str) -> None:
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
        self._record(query, key, mask)
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask=None if mask is None else mask[:, None, None, :]
        )
        return cast(Tensor, attn.to_out[1](attn.to_out[0](output.transpose(1, 2).flatten(2))))

    @torch.compiler.disable
    def _record(self, query: Tensor, key: Tensor, mask: Tensor | None) -> None:
        if (positions := self.capture.positions) is not None:
            self.capture.record(self.name, joint_token_probabilities(query, key, mask, positions))


def _heads(attn: Any, projected: Tensor, parts: int) -> tuple[Tensor, ...]:
    """(B, tokens, parts * heads * width) -> ``parts`` of (B, heads, tokens, width)."""
    return projected.unflatten(2, (parts, attn.heads, attn.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)


def _rotated(values: Tensor, rotary: Tensor) -> Tensor:
    from diffusers.models.transformers.transformer_prx import apply_rope

    return cast(Tensor, apply_rope(values, rotary))


def training_flow(scheduler: Any) -> Flow:
    """How PRX draws timesteps in its training: nine in ten logit-normal and shifted as in sampling, one uniform.

    Source: ``sample_timesteps`` in Photoroom's PRX repository.
    """
    config = scheduler.config
    return Flow(
        density="logit_normal",
        shift=float(config.shift),
        uniform_share=0.1,
        num_train_timesteps=int(config.num_train_timesteps),
    )


def clean_prompt(text: str) -> str:
    """A prompt as diffusers' PRXPipeline cleans it: in small letters, without brackets and most punctuation."""
    return cast(str, _preprocessor().clean_text(text))


@functools.cache
def _preprocessor() -> Any:
    check_ftfy()
    from diffusers.pipelines.prx.pipeline_prx import TextPreprocessor

    return TextPreprocessor()


def check_ftfy() -> None:
    """diffusers cleans PRX's prompts with ftfy.

    Raises:
        UserError: without it.
    """
    if importlib.util.find_spec("ftfy") is None:
        raise UserError("backbone=prx cleans prompts with the package ftfy: pip install 'partcraft-lit[prx]'.")


def load_prx(
    source: str | Path = "Photoroom/prx-512-t2i-sft",
    revision: str | None = None,
    variant: str | None = None,
    resolution: int = 512,
    device: torch.device | str = "cpu",
    *,
    sha256: str | None = None,
    attention_blocks: Sequence[int] | None = None,
    attention_size: int | None = None,
    max_length: int | None = None,
    dtype: Precision = "bfloat16",
    vae_dtype: Precision = "float32",
    name: str = "prx",
) -> PRX:
    """PRX from a folder in diffusers' format, or a hub id.

    Args:
        source: folder or hub id.
        revision: branch, tag or commit of a hub id.
        variant: of the weights' files.
        resolution: side of training images: 256 or 512 as the model was trained, or any that its patches fit.
        device: where to put it.
        sha256: what ``hash`` must be, or its first digits; None takes any weights.
        attention_blocks, max_length, dtype, vae_dtype: see ``PRX``.
        attention_size: None, or the side of the maps, of which this model has one.
        name: recorded with runs.

    Raises:
        UserError: if ftfy, the source, a component or the memory for it is missing, or it holds other weights than
            ``sha256`` says.
    """
    check_ftfy()
    components: PrxComponents = load_prx_components(source, revision, variant, dtype, device)
    backbone = PRX(
        name=name,
        transformer=components.transformer,
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        scheduler=components.scheduler,
        resolution=resolution,
        attention_blocks=attention_blocks,
        max_length=max_length,
        dtype=dtype,
        vae_dtype=vae_dtype,
    )
    if attention_size not in (None, backbone.attention_size):
        raise UserError(
            f"backbone.attention_size={attention_size}: all attention maps of this model are "
            f"{backbone.attention_size} x {backbone.attention_size} at {resolution} px; set it to null."
        )
    check_hash(backbone, sha256)
    return backbone.to(device)


def _vae_scale_factor(vae: Any) -> int:
    factor = getattr(vae, "spatial_compression_ratio", None)
    return int(factor) if factor else 2 ** (len(vae.config.block_out_channels) - 1)


def _checked_blocks(blocks: Sequence[int] | None, count: int) -> list[int]:
    if blocks is None:
        return list(range(int(_FIRST * count), max(int(_LAST * count), int(_FIRST * count) + 1)))
    if not blocks or not all(0 <= number < count for number in blocks):
        raise UserError(
            f"backbone.attention_blocks={list(blocks)}: wanted one or more of 0 to {count - 1}, the blocks of this "
            "model; null takes the middle half."
        )
    return sorted(set(blocks))
