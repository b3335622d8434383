"""SDXL: two text encoders, a pooled embedding, and a UNet that is told sizes and crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.backbones.components import SDXL
from partcraft_lit.backbones.latent_diffusion import LatentDiffusion, Precision, check_hash
from partcraft_lit.backbones.loading import load_components
from partcraft_lit.backbones.text import encode_text
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Conditioning, TokenizedPrompts


class StableDiffusionXL(LatentDiffusion):
    """Two CLIP text encoders, each read at its last layer but one, side by side.

    Args:
        text_encoder: transformers' CLIPTextModel.
        text_encoder_2: transformers' CLIPTextModelWithProjection; its projection of the end of the text is the pooled
            embedding.
        tokenizer, tokenizer_2: they agree on the ids of a text and may differ in padding.
        force_zeros_for_empty_prompt: as in model_index.json: the unconditional embedding of guidance is zeros, as for
            the published base model, else that of the empty prompt.
        others: see ``LatentDiffusion``.

    Raises:
        UserError: if the UNet is not made for these text encoders.

    Source: diffusers' StableDiffusionXLPipeline. Differs: sizes and crops stay in float32 in a half precision model,
    where bfloat16 has no 1333.
    """

    def __init__(
        self,
        *,
        text_encoder: Any,
        text_encoder_2: Any,
        tokenizer: Any,
        tokenizer_2: Any,
        force_zeros_for_empty_prompt: bool = True,
        **others: Any,
    ) -> None:
        _check_widths(others["unet"], text_encoder, text_encoder_2)
        super().__init__(text_encoders=[text_encoder, text_encoder_2], tokenizers=[tokenizer, tokenizer_2], **others)
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt

    def encode_text(self, tokens: TokenizedPrompts, part_vectors: Tensor | None) -> Conditioning:
        """Penultimate states of both encoders, and the second one's pooled embedding."""
        shares: list[Tensor | None] = [None, None]
        if part_vectors is not None:
            shares = list(part_vectors.split(self.token_widths, dim=-1))
        outputs = [
            encode_text(encoder, input_ids, tokens.part_positions, share, output_hidden_states=True)
            for encoder, input_ids, share in zip(self.text_encoders, tokens.input_ids, shares, strict=True)
        ]
        hidden = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return Conditioning(hidden, outputs[1].text_embeds)

    def _sized(self, conditioning: Conditioning, crops: Tensor | None) -> Conditioning:
        """Six size and crop values.

        These are height and width of the original image, top and left of the crop, and twice ``resolution``. Without
        ``crops``: an uncropped image of that size.
        """
        hidden = conditioning.encoder_hidden_states
        return replace(conditioning, time_ids=self._time_ids(crops, len(hidden), hidden.device))

    def encode_unconditional(self) -> Conditioning:
        """Zeros or the empty prompt, as the model was published."""
        empty = super().encode_unconditional()
        if not self.force_zeros_for_empty_prompt or empty.pooled_prompt_embeds is None:
            return empty
        return Conditioning(
            torch.zeros_like(empty.encoder_hidden_states), torch.zeros_like(empty.pooled_prompt_embeds), empty.time_ids
        )

    def _time_ids(self, crops: Tensor | None, rows: int, device: torch.device) -> Tensor:
        side = float(self.resolution)
        if crops is None:
            crops = torch.tensor([[side, side, 0.0, 0.0]]).expand(rows, -1)
        target = torch.full((rows, 2), side)
        return torch.cat([crops.to(device, torch.float32), target.to(device)], dim=1)


def load_sdxl(
    source: str | Path = "stabilityai/stable-diffusion-xl-base-1.0",
    revision: str | None = None,
    variant: str | None = None,
    resolution: int | None = 512,
    device: torch.device | str = "cpu",
    *,
    mirrors: Sequence[str] = (),
    sha256: str | None = None,
    config: str | Path | None = None,
    vae: str | Path | None = None,
    vae_dtype: Precision = "float32",
    attention_size: int | None = None,
    dtype: Precision = "float32",
    name: str = "sdxl",
) -> StableDiffusionXL:
    """SDXL from wherever it is.

    Args:
        source: a folder in diffusers' format, a single ``.safetensors`` file in the original format, or a hub id.
        revision: branch, tag or commit of a hub id.
        variant: "fp16" for files like ``diffusion_pytorch_model.fp16.safetensors``.
        resolution: side of training images; None takes the model's own.
        device: where to put it.
        mirrors, sha256, config: as in ``stable_diffusion.load_sd15``.
        vae: folder or hub id of another VAE in diffusers' format, such as one that was made not to overflow float16.
        vae_dtype: of the VAE. The published one overflows float16.
        attention_size: see ``LatentDiffusion``.
        dtype: of UNet and text encoders.
        name: recorded with runs.

    Raises:
        UserError: if the source is missing, incomplete, of another kind of model, cannot be had offline, or holds other
            weights than ``sha256`` says.
    """
    components = load_components(
        source, SDXL, revision=revision, variant=variant, config=config, mirrors=mirrors, vae=vae
    )
    first, second = components.text_encoders
    tokenizer, tokenizer_2 = components.tokenizers
    backbone = StableDiffusionXL(
        name=name,
        unet=components.unet,
        vae=components.vae,
        text_encoder=first,
        text_encoder_2=second,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        scheduler=components.scheduler,
        force_zeros_for_empty_prompt=components.force_zeros_for_empty_prompt,
        resolution=resolution,
        attention_size=attention_size,
        dtype=dtype,
        vae_dtype=vae_dtype,
    )
    check_hash(backbone, sha256)
    return backbone.to(device)


def _check_widths(unet: Any, text_encoder: Any, text_encoder_2: Any) -> None:
    """A refiner, an inpainting model or mixed-up folders fail here and not inside a matrix product."""
    widths = (int(text_encoder.config.hidden_size), int(text_encoder_2.config.hidden_size))
    if unet.config.cross_attention_dim != sum(widths):
        raise UserError(
            f"The UNet reads text of width {unet.config.cross_attention_dim}, the two text encoders give "
            f"{widths[0]} + {widths[1]}: this is not an SDXL base model, or its parts are of different models."
        )
    wanted = int(text_encoder_2.config.projection_dim) + 6 * int(unet.config.addition_time_embed_dim or 0)
    if unet.config.addition_embed_type != "text_time" or unet.config.projection_class_embeddings_input_dim != wanted:
        raise UserError(
            f"The UNet's added embedding is {unet.config.addition_embed_type!r} of width "
            f"{unet.config.projection_class_embeddings_input_dim}; expected 'text_time' of {wanted} (pooled text and "
            f"six numbers): this is not an SDXL base model."
        )
