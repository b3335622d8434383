"""Stable Diffusion 1.x and 2.x, and the miniature of the same classes, behind the Backbone protocol."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.backbones.components import SD, Components
from partcraft_lit.backbones.latent_diffusion import LatentDiffusion, Precision, check_hash
from partcraft_lit.backbones.loading import load_components, packaged_weights
from partcraft_lit.backbones.text import encode_text
from partcraft_lit.core.types import Conditioning, TokenizedPrompts


class StableDiffusion(LatentDiffusion):
    """One CLIP text encoder, read at its last layer.

    Args:
        text_encoder: transformers' CLIPTextModel.
        tokenizer: transformers' CLIPTokenizer.
        others: see ``LatentDiffusion``.
    """

    pipeline = "StableDiffusionPipeline"

    def __init__(self, *, text_encoder: Any, tokenizer: Any, **others: Any) -> None:
        super().__init__(text_encoders=[text_encoder], tokenizers=[tokenizer], **others)

    def encode_text(self, tokens: TokenizedPrompts, part_vectors: Tensor | None) -> Conditioning:
        """The last layer of the text encoder, after its final norm."""
        output = encode_text(self.text_encoders[0], tokens.input_ids[0], tokens.part_positions, part_vectors)
        return Conditioning(encoder_hidden_states=output.last_hidden_state)


def load_sd15(
    source: str | Path = "stable-diffusion-v1-5/stable-diffusion-v1-5",
    revision: str | None = None,
    variant: str | None = None,
    resolution: int | None = 512,
    device: torch.device | str = "cpu",
    *,
    mirrors: Sequence[str] = (),
    sha256: str | None = None,
    config: str | Path | None = None,
    attention_size: int | None = None,
    dtype: Precision = "float32",
    name: str = "sd15",
) -> StableDiffusion:
    """Stable Diffusion 1.x or 2.x from wherever it is.

    Args:
        source: a folder in diffusers' format, a single ``.safetensors`` file in the original format, or a hub id.
        revision: branch, tag or commit of a hub id.
        variant: "fp16" for files like ``diffusion_pytorch_model.fp16.safetensors``.
        resolution: side of training images; None takes the model's own.
        device: where to put it.
        mirrors: hub ids of the same model, tried in turn when ``source`` is a hub id that cannot be had; not with a
            revision.
        sha256: what ``hash`` must be, or its first digits; None takes any weights.
        config: for a single file only: folder with the model's settings and tokenizer in diffusers' format. SD 1.x
            needs from it no more than ``tokenizer/``, and not even that where the hub's cache holds one.
        attention_size: see ``LatentDiffusion``.
        dtype: of UNet and text encoder.
        name: recorded with runs.

    Raises:
        UserError: if the source is missing, incomplete, of another kind of model, cannot be had offline, or holds other
            weights than ``sha256`` says.
    """
    components = load_components(source, SD, revision=revision, variant=variant, config=config, mirrors=mirrors)
    backbone = _build(components, name, resolution, attention_size, dtype)
    check_hash(backbone, sha256)
    return backbone.to(device)


def load_mini(
    path: str | Path | None = None,
    device: torch.device | str = "cpu",
    *,
    resolution: int | None = 64,
    attention_size: int | None = None,
    dtype: Precision = "float32",
    packaged: str = "mini",
) -> StableDiffusion:
    """The miniature Stable Diffusion: the weights in the package, or another folder in the same format.

    Args:
        path: the folder; None for weights in the package.
        device: where it computes.
        resolution: side of its images in pixels.
        attention_size: side of the attention maps that are read; None for the backbone's rule.
        dtype: precision of frozen weights.
        packaged: which of these: "mini", or "mini_plain", trained without the grounding loss.

    Raises:
        UserError: if the folder is missing or incomplete.
    """
    components = load_components(packaged_weights(packaged) if path is None else path)
    return _build(components, "mini", resolution, attention_size, dtype).to(device)


def _build(
    components: Components, name: str, resolution: int | None, attention_size: int | None, dtype: Precision
) -> StableDiffusion:
    return StableDiffusion(
        name=name,
        unet=components.unet,
        vae=components.vae,
        text_encoder=components.text_encoders[0],
        tokenizer=components.tokenizers[0],
        scheduler=components.scheduler,
        resolution=resolution,
        attention_size=attention_size,
        dtype=dtype,
    )
