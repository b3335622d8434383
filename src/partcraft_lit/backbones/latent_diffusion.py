"""Base class of Stable Diffusion backbones: a UNet with cross-attention, CLIP text encoders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from partcraft_lit.backbones.attention import AttentionCapture, cross_attention_sides
from partcraft_lit.backbones.cpu_attention import CpuAttnProcessor
from partcraft_lit.backbones.im2col import use_im2col_convolutions
from partcraft_lit.backbones.latent_model import LatentModel, Precision, check_hash
from partcraft_lit.backbones.lora import lora_targets
from partcraft_lit.backbones.trainable_weights import cross_kv
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Conditioning

__all__ = ["LatentDiffusion", "Precision", "check_hash", "choose_attention_layers"]

#: Attention is captured at the coarsest resolution of at least this side: 16 for SD1.5 at 512 px, as in PartCraft.
MIN_ATTENTION_SIZE = 16


class LatentDiffusion(LatentModel):
    """A latent diffusion model with one or more CLIP text encoders; subclasses implement ``encode_text``.

    The UNet's attention processors become ``CpuAttnProcessor`` and its large convolutions ``Im2colConv2d``: equal up to
    rounding, and faster on a CPU.

    Args:
        name: for logs and metadata.
        unet: diffusers' UNet2DConditionModel.
        vae: diffusers' AutoencoderKL.
        text_encoders: transformers' CLIP text models.
        tokenizers: transformers' CLIPTokenizer, one per text encoder.
        scheduler: any diffusers scheduler with the noise schedule; only its config is used.
        resolution: side of the square images in pixels; None for the UNet's own.
        attention_size: side of the captured cross-attention maps; None for the coarsest of at least
            ``MIN_ATTENTION_SIZE``.
        dtype, vae_dtype: see ``LatentModel``.

    Raises:
        UserError: if the UNet does not support the resolution or attention size.
    """

    denoiser_name = "unet"
    unet: nn.Module

    def __init__(
        self,
        *,
        name: str,
        unet: Any,
        vae: Any,
        text_encoders: Sequence[Any],
        tokenizers: Sequence[Any],
        scheduler: Any,
        resolution: int | None = None,
        attention_size: int | None = None,
        dtype: torch.dtype | Precision = torch.float32,
        vae_dtype: torch.dtype | Precision = torch.float32,
    ) -> None:
        from diffusers import DDPMScheduler

        vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        side = _checked_resolution(unet, vae_scale_factor, resolution)
        size, layers = choose_attention_layers(unet, side // vae_scale_factor, attention_size)
        super().__init__(
            name=name,
            denoiser=unet,
            vae=vae,
            text_encoders=text_encoders,
            tokenizers=tokenizers,
            # Latents are unbounded: never clip, whatever the scheduler's default.
            noise_scheduler=DDPMScheduler.from_config(scheduler.config, clip_sample=False),
            resolution=side,
            vae_scale_factor=vae_scale_factor,
            latent_channels=int(unet.config.in_channels),
            attention_size=size,
            attention_layers=layers,
            dtype=dtype,
            vae_dtype=vae_dtype,
        )
        self.unet.set_attn_processor(CpuAttnProcessor())  # type: ignore[operator]
        use_im2col_convolutions(self.unet)
        self.requires_grad_(False).eval()

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction for (B, C, h, w) latents at (B,) timesteps, in float32."""
        dtype = self.dtype
        output = self.unet(
            noisy_latents.to(dtype),
            timesteps,
            encoder_hidden_states=conditioning.encoder_hidden_states.to(dtype),
            added_cond_kwargs=_added_conditions(conditioning),
            return_dict=False,
        )
        return cast(Tensor, output[0]).float()

    def readable_attention(self) -> dict[str, tuple[str, ...]]:
        """Probabilities of all cross-attention layers."""
        return {"probabilities": tuple(cross_attention_sides(self.unet, self.resolution // self.vae_scale_factor))}

    def capture_attention(self, layers: Sequence[str] | None = None, target: str | None = None) -> AttentionCapture:
        """Probabilities of the cross-attention layers at ``attention_size``, or of others."""
        if layers is not None:
            return AttentionCapture(self.unet, layers)
        return AttentionCapture(self.unet, self.attention_layers, self.attention_size)

    def lora_targets(self, scope: str) -> list[str]:
        """Projections of cross-attention, or of all attention."""
        return lora_targets(self.unet, scope)

    def cross_kv(self) -> list[tuple[str, nn.Parameter]]:
        """Keys and values of cross-attention."""
        return cross_kv(self.unet)


def choose_attention_layers(
    unet: Any, latent_size: int, attention_size: int | None = None
) -> tuple[int, tuple[str, ...]]:
    """Cross-attention layers with maps of one side.

    Args:
        unet: a UNet2DConditionModel.
        latent_size: side of its square latents.
        attention_size: the side; None for the coarsest of at least ``MIN_ATTENTION_SIZE``, or the finest if all are
            coarser.

    Returns:
        The side, and the layers' module names in the UNet's order.

    Raises:
        UserError: if no layer has this side.
    """
    sides = cross_attention_sides(unet, latent_size)
    present = sorted(set(sides.values()))
    if attention_size is None:
        attention_size = next((side for side in present if side >= MIN_ATTENTION_SIZE), present[-1])
    if attention_size not in present:
        raise UserError(
            f"backbone.attention_size={attention_size} is the side of no cross-attention map at latents of "
            f"{latent_size} x {latent_size}; this model has {', '.join(map(str, present))}."
        )
    return attention_size, tuple(name for name, side in sides.items() if side == attention_size)


def _added_conditions(conditioning: Conditioning) -> Mapping[str, Tensor] | None:
    if conditioning.pooled_prompt_embeds is None or conditioning.time_ids is None:
        return None
    return {"text_embeds": conditioning.pooled_prompt_embeds, "time_ids": conditioning.time_ids}


def _checked_resolution(unet: Any, vae_scale_factor: int, resolution: int | None) -> int:
    if resolution is None:
        return int(unet.config.sample_size) * vae_scale_factor
    step = vae_scale_factor * 2 ** (len(unet.config.block_out_channels) - 1)
    if resolution < step or resolution % step:
        nearest = max(step, round(resolution / step) * step)
        raise UserError(
            f"backbone.resolution={resolution} does not fit this model: it must be a multiple of {step} "
            f"(VAE {vae_scale_factor} x UNet {step // vae_scale_factor}). The nearest is {nearest}."
        )
    return resolution
