"""Base class of all backbones: frozen networks, latents, prompts with part vectors, memory."""

from __future__ import annotations

import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, cast

import torch
from torch import Tensor, nn

from partcraft_lit.backbones.prompt_cache import PromptCache
from partcraft_lit.backbones.text import overwrite_positions, plain_tokens
from partcraft_lit.backbones.weights import weights_hash
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.settings import Inject
from partcraft_lit.core.store.mapped import MappedWeights
from partcraft_lit.core.types import (
    AttentionRecorder,
    Conditioning,
    Flow,
    PartToken,
    TextFormat,
    TokenizedPrompts,
)

#: Recompilations per block type (widths, map sizes, batch sizes) before torch falls back to eager.
_COMPILED_VARIANTS = 64

Precision = Literal["float32", "bfloat16", "float16"]


class LatentModel(nn.Module, ABC):
    """Text encoders, a denoiser of latents and a VAE, behind the Backbone protocol.

    A subclass names its denoiser (``denoiser_name``), says what it was trained for (``flow``), and implements
    ``encode_text``, ``denoise``, ``readable_attention``, ``capture_attention``, ``lora_targets`` and ``cross_kv``;
    ``_posterior``, ``_decode`` and ``set_timesteps`` where its VAE or its schedule are special. All networks are frozen
    and in evaluation mode; adapters are added to the denoiser later.

    Args:
        name: for logs and metadata.
        denoiser: of diffusers.
        vae: of diffusers.
        text_encoders: of transformers.
        tokenizers: of transformers, one per text encoder.
        noise_scheduler: of diffusers.
        resolution: side of the square images in pixels.
        vae_scale_factor: pixels per latent.
        latent_channels: of the denoiser's input.
        attention_size: side of the captured maps.
        attention_layers: layers that are captured, as module names inside the denoiser.
        dtype: of the denoiser and the text encoders.
        vae_dtype: of the VAE; float32 by default, since some VAEs overflow float16.
    """

    #: Attribute of the denoiser, and the prefix of its weights in checkpoints.
    denoiser_name: str
    #: diffusers' class with one text encoder that draws from ``prompt_embeds``; "" for none.
    pipeline: ClassVar[str] = ""
    flow: Flow | None = None
    text_format: TextFormat | None = None
    inject: Inject = "before"

    name: str
    hash: str
    vae: nn.Module
    text_encoders: Sequence[nn.Module]
    tokenizers: Sequence[Any]
    noise_scheduler: Any
    resolution: int
    vae_scale_factor: int
    latent_channels: int
    token_widths: tuple[int, ...]
    attention_layers: tuple[str, ...]
    attention_target: str = "probabilities"
    attention_size: int

    def __init__(
        self,
        *,
        name: str,
        denoiser: Any,
        vae: Any,
        text_encoders: Sequence[Any],
        tokenizers: Sequence[Any],
        noise_scheduler: Any,
        resolution: int,
        vae_scale_factor: int,
        latent_channels: int,
        attention_size: int,
        attention_layers: tuple[str, ...],
        dtype: torch.dtype | Precision = torch.float32,
        vae_dtype: torch.dtype | Precision = torch.float32,
    ) -> None:
        super().__init__()
        self.name = name
        self.vae_scale_factor = vae_scale_factor
        self.latent_channels = latent_channels
        self.resolution = resolution
        self.attention_size, self.attention_layers = attention_size, attention_layers
        self._scale = float(getattr(vae.config, "scaling_factor", None) or 1.0)
        self._shift = float(getattr(vae.config, "shift_factor", None) or 0.0)
        self.hash = weights_hash([denoiser, vae, *text_encoders], self._scale, self._shift)
        setattr(self, self.denoiser_name, _cast(denoiser, dtype))
        self.vae = _cast(vae, vae_dtype)
        encoders = nn.ModuleList([_cast(encoder, dtype) for encoder in text_encoders])
        self.text_encoders = cast(Sequence[nn.Module], encoders)
        self.tokenizers = tuple(tokenizers)
        self.token_widths = tuple(int(encoder.config.hidden_size) for encoder in text_encoders)
        self.noise_scheduler = noise_scheduler
        self._prompts = PromptCache()
        self._vae_offloaded = False
        self._vae_file: MappedWeights | None = None
        self.requires_grad_(False).eval()

    @property
    def denoiser(self) -> nn.Module:
        """The network that adapters are added to."""
        return cast(nn.Module, getattr(self, self.denoiser_name))

    @property
    def context_widths(self) -> tuple[int, ...]:
        """Widths of what the denoiser reads, per text encoder."""
        return self.token_widths

    def train(self, mode: bool = True) -> Self:
        """Switches the denoiser alone, for an adapter's dropout."""
        super().train(False)
        self.training = mode
        self.denoiser.train(mode)
        return self

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the denoiser's frozen weights, or of its weights if all train."""
        parameters = list(self.denoiser.parameters())
        return next((parameter for parameter in parameters if not parameter.requires_grad), parameters[0]).dtype

    def encode_images(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior of the scaled latents.

        Args:
            pixel_values: (B, 3, H, W) in -1...1; H and W are multiples of ``vae_scale_factor``.

        Returns:
            Mean and standard deviation, (B, C, H/f, W/f) each, float32.

        Raises:
            ValueError: if a side is not a multiple of ``vae_scale_factor``.
        """
        if any(side % self.vae_scale_factor for side in pixel_values.shape[-2:]):
            raise ValueError(
                f"Sides of pixel_values must be multiples of {self.vae_scale_factor}, got {tuple(pixel_values.shape)}."
            )
        with torch.no_grad(), self._vae_on_device(pixel_values) as pixels:
            posterior = self._posterior(pixels)
        mean, std = (value.to(pixel_values.device).float() for value in posterior)
        return (mean - self._shift) * self._scale, std * self._scale

    def _posterior(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation in the VAE's own scale."""
        posterior = self.vae.encode(pixels).latent_dist  # type: ignore[operator]
        return posterior.mean, posterior.std

    def decode_latents(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) latents in the denoiser's scale -> (B, 3, h * f, w * f), about -1...1, float32, not clamped."""
        with self._vae_on_device(latents.float() / self._scale + self._shift) as unscaled:
            decoded = self._decode(unscaled)
        return decoded.to(latents.device).float()

    def _decode(self, unscaled: Tensor) -> Tensor:
        """Images of latents in the VAE's own scale."""
        return cast(Tensor, self.vae.decode(unscaled).sample)  # type: ignore[operator]

    def plain_tokens(self, prompts: Sequence[str]) -> TokenizedPrompts:
        """Tokenizes prompts without part tokens; for CLIP, long ones are truncated."""
        if self.text_format is not None:
            return self.text_format([[prompt] for prompt in prompts])
        return plain_tokens(self.tokenizers, prompts)

    @abstractmethod
    def encode_text(self, tokens: TokenizedPrompts, part_vectors: Tensor | None) -> Conditioning:
        """Runs the text encoders.

        Args:
            tokens: B prompts.
            part_vectors: (B, T, sum of ``token_widths``), which replace the embeddings at ``tokens.part_positions``;
                None leaves what stands there.
        """

    def encode_prompts(
        self, tokens: TokenizedPrompts, part_vectors: Tensor | None, crops: Tensor | None = None
    ) -> Conditioning:
        """Text conditioning, and the size and crop conditioning of models that take it.

        Args:
            tokens: B prompts.
            part_vectors: (B, T, sum of widths) of ``tokens.part_positions``: token embeddings, or hidden states where
                ``inject`` is "after"; None if no prompt has a part token.
            crops: (B, 4) as ``TrainingBatch.crops``; None for whole images of ``resolution``.

        Raises:
            ValueError: for part tokens without vectors, or if shapes differ.
        """
        if self.inject == "before":
            return self._sized(self.encode_text(tokens, part_vectors), crops)
        if part_vectors is None and bool((tokens.part_positions >= 0).any()):
            raise ValueError("The prompts hold part tokens, so their vectors are needed, (B, T, width); got None.")
        conditioning = self._prompts.encode(tokens, lambda row: self.encode_text(row, None))
        if part_vectors is not None:
            hidden = overwrite_positions(conditioning.encoder_hidden_states, tokens.part_positions, part_vectors)
            conditioning.encoder_hidden_states = hidden
        return self._sized(conditioning, crops)

    def _sized(self, conditioning: Conditioning, crops: Tensor | None) -> Conditioning:
        """Adds size and crop conditioning, for models that take it."""
        return conditioning

    def encode_unconditional(self) -> Conditioning:
        """Unconditional embedding of classifier-free guidance, one row."""
        return self.encode_prompts(self.plain_tokens([""]).to(self.device), None)

    @torch.no_grad()
    def word_states(self, words: Sequence[str]) -> Tensor:
        """(words, sum of ``context_widths``) what the denoiser reads at each word of "a photo of a WORD", float32.

        A word of several tokens is read at its last one, but for ``text_format``, which refuses it.
        """
        if self.text_format is not None:
            each = [self.text_format([["a photo of a ", PartToken(0, 0)]], word).to(self.device) for word in words]
            states = [self.encode_text(tokens, None).encoder_hidden_states[0] for tokens in each]
            return torch.cat([state[tokens.part_positions[0]] for state, tokens in zip(states, each)]).float()
        tokens = self.plain_tokens([f"a photo of a {word}" for word in words]).to(self.device)
        ends = (tokens.input_ids[0] == self.tokenizers[0].eos_token_id).int().argmax(dim=1)
        hidden = self.encode_text(tokens, None).encoder_hidden_states.float()
        return hidden[torch.arange(len(words), device=ends.device), ends - 1]

    @abstractmethod
    def denoise(self, noisy_latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction for (B, C, h, w) latents at (B,) timesteps, in float32."""

    def set_timesteps(self, scheduler: Any, steps: int, device: torch.device) -> None:
        """Prepares a sampling scheduler; override where the schedule depends on the resolution."""
        scheduler.set_timesteps(steps, device=device)

    @abstractmethod
    def readable_attention(self) -> dict[str, tuple[str, ...]]:
        """What can be captured: target -> names of all layers, in the order of the forward pass."""

    @abstractmethod
    def capture_attention(self, layers: Sequence[str] | None = None, target: str | None = None) -> AttentionRecorder:
        """Starts to capture attention.

        Args:
            layers: names of layers, whose maps then keep their side; None for ``attention_layers``.
            target: a key of ``readable_attention``; None for the backbone's own.
        """

    @abstractmethod
    def lora_targets(self, scope: str) -> list[str]:
        """Module names in the denoiser of the layers that a LoRA of this scope adapts."""

    @abstractmethod
    def cross_kv(self) -> list[tuple[str, nn.Parameter]]:
        """Names and weights of the keys and values of the text in the denoiser."""

    def enable_gradient_checkpointing(self) -> None:
        """Enables gradient checkpointing in the denoiser."""
        self.denoiser.enable_gradient_checkpointing()  # type: ignore[operator]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compiles the denoiser's transformer blocks, once per width and map size; adapters must be in place.

        Blocks only: they hold the small operations worth fusing, and a whole denoiser compiles many times longer.

        Args:
            backend: of ``torch.compile``; "inductor" needs a C++ compiler.

        Raises:
            UserError: without a compiler.
        """
        compilers = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
        if backend == "inductor" and not any(map(shutil.which, compilers)):
            raise UserError("hardware.compile=true needs a C++ compiler: install g++, or set hardware.compile=false.")
        dynamo = torch._dynamo.config
        dynamo.recompile_limit = max(dynamo.recompile_limit, _COMPILED_VARIANTS)
        self._compile(backend)

    def _compile(self, backend: str) -> None:
        """Override where the class does not name its repeated blocks."""
        self.denoiser.compile_repeated_blocks(backend=backend, dynamic=False)  # type: ignore[operator]

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
    """Casts a network to a dtype or its name, but for what is computed and not stored: frequencies of positions."""
    dtype = precision if isinstance(precision, torch.dtype) else getattr(torch, precision)
    computed = [(m, name, m._buffers[name]) for m in network.modules() for name in m._non_persistent_buffers_set]
    # Not the network's own ``to``: that of diffusers warns about float32 layers, which these have not.
    cast_network = nn.Module.to(network, dtype)
    for module, name, buffer in computed:
        module._buffers[name] = buffer
    return cast_network


def check_hash(backbone: LatentModel, sha256: str | None) -> None:
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
        raise UserError(f"backbone.sha256={sha256}: wanted 8 to 64 hexadecimal digits in lower case.")
    if not backbone.hash.startswith(sha256):
        raise UserError(
            f"The weights of {backbone.name!r} have the hash {backbone.hash}, backbone.sha256={sha256} was asked for: "
            f"this is another model, another version of it, or a damaged copy. It is a hash of the values of all "
            f"tensors, not of a file. Take it from a run that is trusted, or set backbone.sha256=null."
        )
