"""Base class of Stable Diffusion backbones: frozen networks, latents, denoising, attention layers."""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from partcraft_lit.backbones.attention import cross_attention_sides
from partcraft_lit.backbones.cpu_attention import CpuAttnProcessor
from partcraft_lit.backbones.im2col import use_im2col_convolutions
from partcraft_lit.backbones.text import plain_tokens
from partcraft_lit.backbones.weights import weights_hash
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store.mapped import MappedWeights
from partcraft_lit.core.types import Conditioning, TokenizedPrompts

#: Attention is captured at the coarsest resolution of at least this side: 16 for SD1.5 at 512 px, as in PartCraft.
MIN_ATTENTION_SIZE = 16

#: Recompilations per block type (widths, map sizes, batch sizes) before torch falls back to eager.
_COMPILED_VARIANTS = 64

Precision = Literal["float32", "bfloat16", "float16"]


class LatentDiffusion(nn.Module, ABC):
    """A latent diffusion model with one or more CLIP text encoders; subclasses implement ``encode_prompts``.

    All networks are frozen and in evaluation mode; adapters are added to ``unet`` later. The UNet's attention
    processors become ``CpuAttnProcessor`` and its large convolutions ``Im2colConv2d``: equal up to rounding, and
    faster on a CPU.

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
        dtype: of the UNet and the text encoders.
        vae_dtype: of the VAE; float32 by default, since some VAEs overflow float16.

    Raises:
        UserError: if the UNet does not support the resolution or attention size.
    """

    name: str
    hash: str
    unet: nn.Module
    vae: nn.Module
    text_encoders: Sequence[nn.Module]
    tokenizers: Sequence[Any]
    noise_scheduler: Any
    resolution: int
    vae_scale_factor: int
    latent_channels: int
    token_widths: tuple[int, ...]
    attention_layers: tuple[str, ...]
    attention_size: int

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

        super().__init__()
        self.name = name
        self.vae_scale_factor = 2 ** (len(vae.config.block_out_channels) - 1)
        self.latent_channels = int(unet.config.in_channels)
        self.resolution = _checked_resolution(unet, self.vae_scale_factor, resolution)
        self.attention_size, self.attention_layers = choose_attention_layers(
            unet, self.resolution // self.vae_scale_factor, attention_size
        )
        self._scale = float(vae.config.scaling_factor)
        self._shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.hash = weights_hash([unet, vae, *text_encoders], self._scale, self._shift)
        self.unet = _cast(unet, dtype)
        self.unet.set_attn_processor(CpuAttnProcessor())  # type: ignore[operator]
        use_im2col_convolutions(self.unet)
        self.vae = _cast(vae, vae_dtype)
        encoders = nn.ModuleList([_cast(encoder, dtype) for encoder in text_encoders])
        self.text_encoders = cast(Sequence[nn.Module], encoders)
        self.tokenizers = tuple(tokenizers)
        self.token_widths = tuple(int(encoder.config.hidden_size) for encoder in text_encoders)
        # Latents are unbounded: never clip, whatever the scheduler's default.
        self.noise_scheduler = DDPMScheduler.from_config(scheduler.config, clip_sample=False)
        self._vae_offloaded = False
        self._vae_file: MappedWeights | None = None
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Switches the UNet alone, for an adapter's dropout."""
        super().train(False)
        self.training = mode
        self.unet.train(mode)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the UNet's frozen weights, or of its weights if all train."""
        first = next(self.unet.parameters())
        return next((parameter for parameter in self.unet.parameters() if not parameter.requires_grad), first).dtype

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the scaled latents.

        Args:
            pixel_values: (B, 3, H, W) in -1...1; H and W are multiples of ``vae_scale_factor``.

        Returns:
            Mean and standard deviation, (B, C, H/f, W/f) each, float32.

        Raises:
            ValueError: if a side is no multiple of ``vae_scale_factor``.
        """
        if any(side % self.vae_scale_factor for side in pixel_values.shape[-2:]):
            raise ValueError(
                f"Sides of pixel_values must be multiples of {self.vae_scale_factor}, got {tuple(pixel_values.shape)}."
            )
        with torch.no_grad(), self._vae_on_device(pixel_values) as pixels:
            posterior = self.vae.encode(pixels).latent_dist  # type: ignore[operator]
        mean, std = (value.to(pixel_values.device).float() for value in (posterior.mean, posterior.std))
        return (mean - self._shift) * self._scale, std * self._scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) latents in the UNet's scale -> (B, 3, h * f, w * f), about -1...1, float32, not clamped."""
        with self._vae_on_device(latents.float() / self._scale + self._shift) as unscaled:
            decoded = cast(Tensor, self.vae.decode(unscaled).sample)  # type: ignore[operator]
        return decoded.to(latents.device).float()

    @abstractmethod
    def encode_prompts(
        self, tokens: TokenizedPrompts, part_vectors: Tensor | None, crops: Tensor | None = None
    ) -> Conditioning:
        """Text conditioning, and the size and crop conditioning of models that take it.

        Args:
            tokens: B prompts.
            part_vectors: (B, T, sum of ``token_widths``), which replace the embeddings at ``tokens.part_positions``;
                None if no prompt has a part token.
            crops: (B, 4) as ``TrainingBatch.crops``; None for whole images of ``resolution``.

        Raises:
            ValueError: for part tokens without vectors, or if shapes differ.
        """

    def encode_unconditional(self) -> Conditioning:
        """Unconditional embedding of classifier-free guidance, one row."""
        return self.encode_prompts(plain_tokens(self.tokenizers, [""]).to(self.device), None)

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

    def enable_gradient_checkpointing(self) -> None:
        """Enables gradient checkpointing in the UNet."""
        self.unet.enable_gradient_checkpointing()  # type: ignore[operator]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles the UNet's transformer blocks, once per width and map size; adapters must be in place.

        Blocks only: they hold the small operations worth fusing, and a whole UNet compiles many times longer.

        Args:
            backend: of ``torch.compile``; "inductor" needs a C++ compiler.

        Raises:
            UserError: without a compiler.
        """
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
        if backend == "inductor" and not any(map(shutil.which, compilers)):
            raise UserError("hardware.compile=true wants a C++ compiler: install g++, or set hardware.compile=false.")
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, _COMPILED_VARIANTS)
        self.unet.compile_repeated_blocks(backend=backend, dynamic=False)  # type: ignore[operator]

    def offload_vae(self, folder: Path | None = None) -> None:
        """Offloads the VAE to the CPU, or on a CPU to a memory-mapped file, except while it encodes or decodes.

        Args:
            folder: of the unlinked file, see ``MappedWeights``.
        """
        self._vae_offloaded = True
        self.vae.to("cpu")
        if self.device.type == "cpu" and self._vae_file is None:
            self._vae_file = MappedWeights(self.vae, folder)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """``to`` and its like leave an offloaded VAE where it is."""
        if not self._vae_offloaded:
            return super()._apply(fn, recurse)
        vae = self._modules.pop("vae")
        try:
            return super()._apply(fn, recurse)
        finally:
            self._modules["vae"] = vae

    @contextmanager
    def _vae_on_device(self, values: Tensor) -> Iterator[Tensor]:
        """The values in the VAE's dtype, outside autocast and on its device."""
        if self._vae_offloaded:
            self.vae.to(self.device)
        weight = next(self.vae.parameters())
        try:
            with torch.autocast(weight.device.type, enabled=False):
                yield values.to(weight.device if self._vae_offloaded else values.device, weight.dtype)
        finally:
            if self._vae_offloaded:
                self.vae.to("cpu")
            if self._vae_file is not None:
                self._vae_file.release()


def _cast(network: Any, precision: torch.dtype | Precision) -> Any:
    """Casts a network to a dtype or its name."""
    dtype = precision if isinstance(precision, torch.dtype) else getattr(torch, precision)
    # Not the network's own ``to``: that of diffusers warns about float32 layers, which these have not.
    return nn.Module.to(network, dtype)


def check_hash(backbone: LatentDiffusion, sha256: str | None) -> None:
    """Verifies the weights.

    Args:
        backbone: as loaded.
        sha256: expected ``Backbone.hash``, or at least its first 8 digits; None accepts any.

    Raises:
        UserError: if they differ.
    """
    if sha256 is None:
        return
    if not re.fullmatch(r"[0-9a-f]{8,64}", sha256):
        raise UserError(f"backbone.sha256={sha256}: wanted 8 to 64 hexadecimal digits in small letters.")
    if not backbone.hash.startswith(sha256):
        raise UserError(
            f"The weights of {backbone.name!r} have the hash {backbone.hash}, backbone.sha256={sha256} was asked for: "
            f"this is another model, another version of it, or a damaged copy. It is a hash of the values of all "
            f"tensors, not of a file. Take it from a run that is trusted, or set backbone.sha256=null."
        )


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
