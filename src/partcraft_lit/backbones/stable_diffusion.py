"""Stable Diffusion 1.x and 2.x, and the miniature of the same classes, behind the Backbone protocol."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from partcraft_lit.backbones.attention import cross_attention_sides
from partcraft_lit.backbones.sources import Components, load_components, packaged_weights
from partcraft_lit.backbones.text import encode_text
from partcraft_lit.errors import UserError
from partcraft_lit.types import Conditioning, TokenizedPrompts

#: Attention is read at the coarsest maps that are at least this wide: 16 for SD1.5 at 512 px, as in PartCraft.
MIN_ATTENTION_SIZE = 16


class StableDiffusion(nn.Module):
    """A latent diffusion model with one CLIP text encoder.

    All networks are frozen and in evaluation mode where they are built; an adapter added to ``unet`` later is the only
    thing that trains. It is a module so that it moves between devices with the module that holds it.

    Args:
        name: what a person calls it, for logs and records.
        unet: diffusers' UNet2DConditionModel.
        vae: diffusers' AutoencoderKL. It stays in float32 whatever ``dtype`` says: it runs seldom, and its activations
            overflow float16 in some models.
        text_encoder: transformers' CLIPTextModel.
        tokenizer: transformers' CLIPTokenizer.
        scheduler: any diffusers scheduler of the same noise schedule; only its settings are taken.
        resolution: side of its square images in pixels; None takes the UNet's own.
        attention_size: side of the cross-attention maps that are read; None chooses the coarsest of at least
            ``MIN_ATTENTION_SIZE``.
        dtype: of the UNet and the text encoder.

    Raises:
        UserError: if the resolution or the attention size does not fit the UNet.
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
        text_encoder: Any,
        tokenizer: Any,
        scheduler: Any,
        resolution: int | None = None,
        attention_size: int | None = None,
        dtype: torch.dtype = torch.float32,
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
        self.hash = weights_hash([unet, vae, text_encoder], self._scale, self._shift)
        self.unet = unet.to(dtype)
        self.vae = vae.float()
        self.text_encoders = cast(Sequence[nn.Module], nn.ModuleList([text_encoder.to(dtype)]))
        self.tokenizers = (tokenizer,)
        self.token_widths = (int(text_encoder.config.hidden_size),)
        # Latents are not bounded, so they are never clipped, whatever a scheduler's default says.
        self.noise_scheduler = DDPMScheduler.from_config(scheduler.config, clip_sample=False)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """The UNet follows, for an adapter's dropout; the frozen encoders stay in evaluation mode."""
        super().train(False)
        self.training = mode
        self.unet.train(mode)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the UNet's frozen weights; of the others where all of them train."""
        first = next(self.unet.parameters())
        return next((parameter for parameter in self.unet.parameters() if not parameter.requires_grad), first).dtype

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the latents, in the UNet's scale.

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
        with torch.no_grad(), torch.autocast(pixel_values.device.type, enabled=False):
            posterior = self.vae.encode(pixel_values.float()).latent_dist  # type: ignore[operator]
        return (posterior.mean - self._shift) * self._scale, posterior.std * self._scale

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) latents in the UNet's scale -> (B, 3, h * f, w * f), about -1...1, float32, not clamped."""
        with torch.autocast(latents.device.type, enabled=False):
            unscaled = latents.float() / self._scale + self._shift
            return cast(Tensor, self.vae.decode(unscaled).sample)  # type: ignore[operator]

    def encode_prompts(self, tokens: TokenizedPrompts, part_vectors: Tensor | None) -> Conditioning:
        """The last layer of the text encoder, after its final norm.

        Args:
            tokens: B prompts.
            part_vectors: (B, T, width), put in place of the embeddings at ``tokens.part_positions``; None is allowed
                where no prompt has a part token.

        Raises:
            ValueError: if there are part tokens and no vectors, or their shapes differ.
        """
        output = encode_text(self.text_encoders[0], tokens.input_ids[0], tokens.part_positions, part_vectors)
        return Conditioning(encoder_hidden_states=output.last_hidden_state)

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The UNet's prediction for (B, C, h, w) latents at (B,) timesteps, in float32."""
        dtype = self.dtype
        output = self.unet(
            noisy_latents.to(dtype),
            timesteps,
            encoder_hidden_states=conditioning.encoder_hidden_states.to(dtype),
            return_dict=False,
        )
        return cast(Tensor, output[0]).float()

    def enable_gradient_checkpointing(self) -> None:
        """Trades time for memory: the UNet's activations are computed again in the backward pass."""
        self.unet.enable_gradient_checkpointing()  # type: ignore[operator]


def load_sd15(
    source: str | Path = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision: str | None = None,
    variant: str | None = None,
    resolution: int | None = 512,
    device: torch.device | str = "cpu",
    *,
    config: str | Path | None = None,
    attention_size: int | None = None,
    dtype: torch.dtype = torch.float32,
    name: str = "sd15",
) -> StableDiffusion:
    """Stable Diffusion 1.x or 2.x from wherever it is.

    Args:
        source: a folder in diffusers' format, a single ``.safetensors`` file in the original format, or a hub id.
        revision: branch, tag or commit of a hub id.
        variant: "fp16" for files like ``diffusion_pytorch_model.fp16.safetensors``.
        resolution: side of training images; None takes the model's own.
        device: where to put it.
        config: for a single file only: folder with the model's settings and tokenizer in diffusers' format. SD 1.x
            needs from it no more than ``tokenizer/``, and not even that where the hub's cache holds one.
        attention_size: see ``StableDiffusion``.
        dtype: of UNet and text encoder.
        name: recorded with runs.

    Raises:
        UserError: if the source is missing, incomplete, of another kind of model, or cannot be had offline.
    """
    components = load_components(source, revision=revision, variant=variant, config=config)
    return _build(components, name, resolution, attention_size, dtype).to(device)


def load_mini(
    path: str | Path | None = None,
    device: torch.device | str = "cpu",
    *,
    resolution: int | None = 64,
    attention_size: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> StableDiffusion:
    """The miniature Stable Diffusion: the weights in the package, or another folder in the same format.

    Raises:
        UserError: if the folder is missing or incomplete.
    """
    components = load_components(packaged_weights("mini") if path is None else path)
    return _build(components, "mini", resolution, attention_size, dtype).to(device)


def _build(
    components: Components, name: str, resolution: int | None, attention_size: int | None, dtype: torch.dtype
) -> StableDiffusion:
    return StableDiffusion(
        name=name,
        unet=components.unet,
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        scheduler=components.scheduler,
        resolution=resolution,
        attention_size=attention_size,
        dtype=dtype,
    )


def choose_attention_layers(
    unet: Any, latent_size: int, attention_size: int | None = None
) -> tuple[int, tuple[str, ...]]:
    """All cross-attention layers whose maps have one side.

    Args:
        unet: a UNet2DConditionModel.
        latent_size: side of its square latents.
        attention_size: the wanted side; None chooses the coarsest of at least ``MIN_ATTENTION_SIZE``, or the finest
            there is if all are coarser.

    Returns:
        The side, and the layers' module names in the UNet's order.

    Raises:
        UserError: if no layer has the wanted side.
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


def weights_hash(modules: Iterable[nn.Module], *settings: float) -> str:
    """SHA-256 over all tensors and the given settings.

    Taken over tensors as loaded and not over files, so one model has one hash as a folder, as a single file and from
    the hub. Tensors are hashed in parallel; hashlib lets go of the interpreter's lock.
    """
    named = sorted((key, tensor) for index, module in enumerate(modules) for key, tensor in _named(index, module))
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        digests = list(pool.map(lambda item: _tensor_digest(*item), named))
    total = hashlib.sha256(repr(tuple(float(value) for value in settings)).encode())
    for digest in digests:
        total.update(digest)
    return total.hexdigest()


def _named(index: int, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, tensor in module.state_dict().items():
        # transformers 5.6 dropped this level of CLIPTextModel; the weights are the same
        yield f"{index}/{key.removeprefix('text_model.')}", tensor


def _tensor_digest(name: str, tensor: Tensor) -> bytes:
    """Name, shape and values in float32, so that how a file stores its numbers does not matter, only what they are."""
    values = tensor.detach().float().contiguous().cpu()
    digest = hashlib.sha256(f"{name}{tuple(values.shape)}".encode())
    digest.update(values.numpy())  # type: ignore[arg-type]
    return digest.digest()
