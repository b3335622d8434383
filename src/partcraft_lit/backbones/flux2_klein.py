"""FLUX.2 klein behind the Backbone protocol: a transformer of double and single blocks, Qwen3 and flow matching."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from partcraft_lit.backbones.flux2_attention import Flux2AttentionCapture, Target, joint_attention_layers
from partcraft_lit.backbones.flux2_loading import KleinComponents, Placement, load_klein
from partcraft_lit.backbones.latent_model import LatentModel, Precision, check_hash
from partcraft_lit.backbones.lora import check_scope
from partcraft_lit.backbones.quantization import quantize_linear
from partcraft_lit.backbones.qwen import KLEIN_LAYERS, KLEIN_LENGTH, chat_format, encode_qwen, keep_read_layers
from partcraft_lit.backbones.settings import Quantization
from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.types import Conditioning, Flow, TokenizedPrompts

#: Pixels of the VAE's latents along a side of one token.
PATCH = 2
#: Where maps of words were found to fall best on their objects in klein-4B.
#: Source: FreeFuse (720644e).
_BEST_LAYERS = ("single_transformer_blocks.6.attn",)
#: Distance in time between reference images, and of the first from the image that is drawn.
_REFERENCE_STEP = 10

_TEXT_KV = r"transformer_blocks\.\d+\.attn\.add_[kv]_proj"
#: LoRA scope -> names of layers. Single blocks compute text, image and feed-forward in one projection, so that what
#: they do to keys and values of the text alone cannot be adapted.
_SCOPES = {
    "cross": re.compile(rf"^{_TEXT_KV}$"),
    "all": re.compile(
        r"^(transformer_blocks\.\d+\.attn\.(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)"
        r"|single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out))$"
    ),
}


class Flux2Klein(LatentModel):
    """Latents are patches of 2 x 2 latents of the VAE, normalised by the statistics of its batch norm.

    Args:
        name: for logs and metadata.
        transformer: diffusers' Flux2Transformer2DModel without guidance embedding.
        vae: diffusers' AutoencoderKLFlux2.
        text_encoder: transformers' Qwen3ForCausalLM; layers that are not read are dropped.
        tokenizer: of Qwen, with a chat template.
        scheduler: diffusers' FlowMatchEulerDiscreteScheduler.
        resolution: side of the square images in pixels.
        attention_size: side of the captured maps; None for one cell per token.
        attention_layers: layers that are captured; None for those in which words were found to fall on their objects
            best, or the middle single block of a smaller model.
        attention_target: what is captured of them, see ``Flux2AttentionCapture``.
        text_layers: of the text encoder, whose hidden states are read.
        text_length: positions of the text.
        timestep_shift: of training, see ``Flow``.
        quantize: of the linear layers of transformer and text encoder, once the weights have been hashed.
        offload_text_encoder: keeps the text encoder on the CPU, where it reads each prompt once if part vectors enter
            behind it.
        dtype, vae_dtype: see ``LatentModel``.

    Raises:
        UserError: if the networks do not belong together, for a resolution that does not fit, or an unknown layer.
    """

    denoiser_name = "transformer"
    flow = Flow(density="logit_normal")  # with the shift of the settings once these are known
    pipeline = "Flux2KleinPipeline"
    #: ComfyUI's name of the text encoder, and key of the vector in an embedding's file.
    comfyui_key = "qwen3_4b"
    #: Usual file names in ComfyUI's folders of models.
    comfyui_files = MappingProxyType(
        {
            "diffusion_models": "flux-2-klein-base-4b.safetensors",
            "text_encoders": "qwen_3_4b.safetensors",
            "vae": "flux2-vae.safetensors",
        }
    )
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
        resolution: int = 512,
        attention_size: int | None = None,
        attention_layers: Sequence[str] | None = None,
        attention_target: Target = "probabilities",
        text_layers: Sequence[int] = KLEIN_LAYERS,
        text_length: int = KLEIN_LENGTH,
        timestep_shift: float = 1.0,
        quantize: Quantization | None = None,
        offload_text_encoder: bool = False,
        dtype: torch.dtype | Precision = torch.float32,
        vae_dtype: torch.dtype | Precision = torch.float32,
    ) -> None:
        _check_networks(transformer, vae, text_encoder, text_layers)
        factor = PATCH * 2 ** (len(vae.config.block_out_channels) - 1)
        _check_resolution(resolution, factor)
        keep_read_layers(text_encoder, text_layers)
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
            attention_size=_attention_side(resolution // factor, attention_size),
            attention_layers=_chosen_layers(transformer, attention_layers),
            dtype=dtype,
            vae_dtype=vae_dtype,
        )
        self.flow = Flow(
            density="logit_normal",
            shift=timestep_shift,
            num_train_timesteps=int(scheduler.config.num_train_timesteps),
        )
        self.text_format = chat_format(tokenizer, text_length)
        self.text_layers = tuple(text_layers)
        self.attention_target = attention_target
        self._text_offloaded = offload_text_encoder
        self._references: tuple[Tensor, ...] = ()
        if quantize is not None:
            quantize_linear([self.transformer, *self.text_encoders], quantize)

    @property
    def context_widths(self) -> tuple[int, ...]:
        return (len(self.text_layers) * self.token_widths[0],)

    def encode_text(self, tokens: TokenizedPrompts, part_vectors: Tensor | None) -> Conditioning:
        """Hidden states of ``text_layers`` side by side; the transformer reads all positions, padding too."""
        encoder = self.text_encoders[0]
        home, device = next(encoder.parameters()).device, tokens.part_positions.device
        tokens, vectors = tokens.to(home), None if part_vectors is None else part_vectors.to(home)
        assert tokens.attention_mask is not None
        states = encode_qwen(
            encoder, tokens.input_ids[0], tokens.attention_mask, tokens.part_positions, vectors, self.text_layers
        )
        return Conditioning(encoder_hidden_states=states.to(device))

    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The transformer's velocity for (B, C, h, w) latents at (B,) timesteps, in float32."""
        dtype, (_, _, height, width) = self.dtype, noisy_latents.shape
        images = [noisy_latents, *(each.expand(len(noisy_latents), -1, -1, -1) for each in self._references)]
        text = conditioning.encoder_hidden_states.to(dtype)
        output = self.transformer(
            hidden_states=torch.cat([image.to(dtype).flatten(2).transpose(1, 2) for image in images], dim=1),
            timestep=timesteps.to(dtype) / self.noise_scheduler.config.num_train_timesteps,
            guidance=None,
            encoder_hidden_states=text,
            txt_ids=_ids(1, 1, text.shape[1], device=text.device),
            img_ids=torch.cat(
                [
                    _ids(image.shape[-2], image.shape[-1], 1, time=number * _REFERENCE_STEP, device=text.device)
                    for number, image in enumerate(images)
                ]
            ),
            return_dict=False,
        )[0]
        velocity = cast(Tensor, output)[:, : height * width]
        return velocity.transpose(1, 2).unflatten(2, (height, width)).float()

    @contextmanager
    def references(self, latents: Sequence[Tensor]) -> Iterator[None]:
        """While open, the transformer sees these images beside the one that it draws.

        Args:
            latents: (1, C, h, w) each, as of ``encode_images``; sizes may differ.
        """
        self._references = tuple(latents)
        try:
            yield
        finally:
            self._references = ()

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """Shifted towards noise by the number of tokens and steps, as in ``Flux2KleinPipeline``.

        Raises:
            UserError: for a scheduler that cannot be shifted so.
        """
        from diffusers.pipelines.flux2.pipeline_flux2_klein import compute_empirical_mu

        if "mu" not in inspect.signature(scheduler.set_timesteps).parameters:
            raise UserError("The timesteps of FLUX.2 depend on the image's size: set sample.scheduler=flow_euler.")
        tokens = (self.resolution // self.vae_scale_factor) ** 2
        sigmas = np.linspace(1.0, 1 / steps, steps)
        scheduler.set_timesteps(sigmas=sigmas, mu=compute_empirical_mu(tokens, steps), device=device)

    def readable_attention(self) -> dict[str, tuple[str, ...]]:
        """Both targets, of double and single blocks."""
        return dict.fromkeys(get_args(Target), joint_attention_layers(self.transformer))

    def capture_attention(
        self, layers: Sequence[str] | None = None, target: str | None = None
    ) -> Flux2AttentionCapture:
        """Attention of text tokens in ``attention_layers``, or in others."""
        chosen = cast(Target, target or self.attention_target)
        return Flux2AttentionCapture(self.transformer, layers or self.attention_layers, self.attention_size, chosen)

    def lora_targets(self, scope: str) -> list[str]:
        """Keys and values of the text in double blocks, or all projections of attention."""
        check_scope(scope)
        return [name for name, _ in self.transformer.named_modules() if _SCOPES[scope].match(name)]

    def cross_kv(self) -> list[tuple[str, nn.Parameter]]:
        """Key and value projections of the text in double blocks."""
        pattern = re.compile(rf"^{_TEXT_KV}\.weight$")
        return [(name, weight) for name, weight in self.transformer.named_parameters() if pattern.match(name)]

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """``to`` and its like leave an offloaded text encoder where it is."""
        if not self._text_offloaded:
            return super()._apply(fn, recurse)
        encoders = self._modules.pop("text_encoders")
        try:
            return super()._apply(fn, recurse)
        finally:
            self._modules["text_encoders"] = encoders

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        posterior = self.vae.encode(pixels).latent_dist  # type: ignore[operator]
        mean, scale = self._statistics(pixels.dtype)
        return (patchify(posterior.mean) - mean) / scale, patchify(posterior.std) / scale

    def _decode(self, unscaled: Tensor) -> Tensor:
        mean, scale = self._statistics(unscaled.dtype)
        return cast(Tensor, self.vae.decode(unpatchify(unscaled * scale + mean)).sample)  # type: ignore[operator]

    def _statistics(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(C, 1, 1) mean and standard deviation of patches."""
        norm, epsilon = cast(Any, self.vae.bn), self.vae.config.batch_norm_eps  # type: ignore[union-attr]
        mean, scale = norm.running_mean, (norm.running_var + epsilon).sqrt()
        return mean.view(-1, 1, 1).to(dtype), scale.view(-1, 1, 1).to(dtype)


def patchify(latents: Tensor) -> Tensor:
    """(B, C, 2 h, 2 w) -> (B, 4 C, h, w); the places of a patch vary faster than the channels."""
    return torch.nn.functional.pixel_unshuffle(latents, PATCH)


def unpatchify(latents: Tensor) -> Tensor:
    """Undoes ``patchify``."""
    return torch.nn.functional.pixel_shuffle(latents, PATCH)


def load_flux2_klein(
    source: str | Path = "black-forest-labs/FLUX.2-klein-base-4B",
    revision: str | None = None,
    resolution: int = 512,
    device: torch.device | str = "cpu",
    *,
    sha256: str | None = None,
    attention_size: int | None = None,
    attention_layers: Sequence[str] | None = None,
    attention_target: Target = "probabilities",
    text_layers: Sequence[int] = KLEIN_LAYERS,
    text_length: int = KLEIN_LENGTH,
    timestep_shift: float = 1.0,
    quantize: Quantization | None = None,
    offload_text_encoder: bool = False,
    dtype: Precision = "bfloat16",
    vae_dtype: Precision = "float32",
    name: str = "flux2_klein",
) -> Flux2Klein:
    """FLUX.2 klein from a folder in diffusers' format or a hub id.

    Args:
        source: folder or hub id.
        revision: branch, tag or commit of a hub id.
        resolution: side of training images.
        device: where to put it.
        sha256: what ``hash`` must be, or its first digits; None takes any weights.
        others: see ``Flux2Klein``.

    Raises:
        UserError: if the source is missing, incomplete, gated or of another model, a package for ``quantize`` is
            missing, or the weights are more than the device has memory for; before weights are read.
    """
    components: KleinComponents = load_klein(
        source, revision, dtype, Placement(quantize, tuple(text_layers), offload_text_encoder, torch.device(device))
    )
    backbone = Flux2Klein(
        name=name,
        transformer=components.transformer,
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        scheduler=components.scheduler,
        resolution=resolution,
        attention_size=attention_size,
        attention_layers=attention_layers,
        attention_target=attention_target,
        text_layers=text_layers,
        text_length=text_length,
        timestep_shift=timestep_shift,
        quantize=quantize,
        offload_text_encoder=offload_text_encoder,
        dtype=dtype,
        vae_dtype=vae_dtype,
    )
    check_hash(backbone, sha256)
    return backbone.to(device)


def _ids(height: int, width: int, length: int, *, time: int = 0, device: torch.device) -> Tensor:
    """(height * width * length, 4) time, row, column and place in the text of each token."""
    axes = (torch.tensor([time]), torch.arange(height), torch.arange(width), torch.arange(length))
    return torch.cartesian_prod(*axes).to(device)


def _chosen_layers(transformer: Any, chosen: Sequence[str] | None) -> tuple[str, ...]:
    known = joint_attention_layers(transformer)
    if chosen is None:
        singles = [name for name in known if name.startswith("single")]
        return _BEST_LAYERS if set(_BEST_LAYERS) <= set(known) else (singles[len(singles) // 3],)
    for name in chosen:
        if name not in known:
            raise UserError(
                f"backbone.attention_layers: {name!r} is not an attention layer of this model. "
                f"{did_you_mean(name, known)}"
            )
    if not chosen:
        raise UserError("backbone.attention_layers=[]: name at least one layer, or null for the default.")
    return tuple(chosen)


def _attention_side(most: int, chosen: int | None) -> int:
    if chosen is not None and not 1 <= chosen <= most:
        raise UserError(f"backbone.attention_size={chosen}: the attention maps of this backbone have a side of {most}.")
    return chosen or most


def _check_resolution(resolution: int, factor: int) -> None:
    if resolution < factor or resolution % factor:
        nearest = max(factor, round(resolution / factor) * factor)
        raise UserError(
            f"backbone.resolution={resolution} does not fit this model: it must be a multiple of {factor} (VAE "
            f"{factor // PATCH} x patches of {PATCH}). The nearest is {nearest}."
        )


def _check_networks(transformer: Any, vae: Any, text_encoder: Any, text_layers: Sequence[int]) -> None:
    """A FLUX.2 dev, or folders of different models, fail here and not inside a matrix product."""
    if transformer.config.guidance_embeds:
        raise UserError("This transformer takes the guidance scale as an input: it is FLUX.2 dev, not klein.")
    patches = PATCH**2 * int(vae.config.latent_channels)
    if transformer.config.in_channels != patches:
        raise UserError(
            f"The transformer reads latents of {transformer.config.in_channels} channels, the VAE gives {patches} (its "
            f"{vae.config.latent_channels} in patches of {PATCH} x {PATCH}): they are of different models."
        )
    width = len(text_layers) * int(text_encoder.config.hidden_size)
    if transformer.config.joint_attention_dim != width:
        raise UserError(
            f"The transformer reads text of width {transformer.config.joint_attention_dim}, and {len(text_layers)} "
            f"layers of this text encoder give {width}: they are of different models."
        )
