"""A backbone as a plain diffusers pipeline."""

from __future__ import annotations

import copy
from typing import Any

from partcraft_lit.backbones.model_families import family_of
from partcraft_lit.backbones.sampling import make_scheduler
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.randomness import derive_seed
from partcraft_lit.core.types import Backbone


def diffusers_pipeline(backbone: Backbone, scheduler: str) -> Any:
    """The pipeline of the model's family.

    UNet and VAE are shared with the backbone, whose UNet gets diffusers' own attention processors; tokenizers and text
    encoders are copies, since loading an embedding changes them.

    Args:
        backbone: without an adapter.
        scheduler: name of a sampling scheduler.
    """
    import diffusers
    from diffusers.models.attention_processor import AttnProcessor2_0

    backbone.denoiser.set_attn_processor(AttnProcessor2_0())  # type: ignore[operator]
    components = {
        "unet": backbone.denoiser,
        "vae": backbone.vae,
        "scheduler": make_scheduler(backbone.noise_scheduler, scheduler),
    }
    for index, (encoder, tokenizer) in enumerate(zip(backbone.text_encoders, backbone.tokenizers, strict=True)):
        ending = "" if index == 0 else f"_{index + 1}"
        components[f"text_encoder{ending}"] = copy.deepcopy(encoder)
        components[f"tokenizer{ending}"] = copy.deepcopy(tokenizer)
    kind = getattr(diffusers, family_of(backbone).pipeline)
    if len(backbone.text_encoders) == 1:
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        zeros = bool(getattr(backbone, "force_zeros_for_empty_prompt", True))
        components |= {"force_zeros_for_empty_prompt": zeros, "add_watermarker": False}
    pipeline = kind(**components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def pipeline_name(backbone: Backbone | type) -> str:
    """diffusers' class for ``plain_pipeline``, of a backbone or its class.

    Raises:
        UserError: for one without it.
    """
    name = str(getattr(backbone, "pipeline", ""))
    if not name:
        raise UserError(
            "Part vectors of this run cannot be given to a pipeline of diffusers by prompt_embeds alone: its backbone "
            "has several text encoders, or reads more than one text embedding. `partcraft generate` and the Python API "
            "draw with it."
        )
    return name


def plain_pipeline(backbone: Backbone, scheduler: str) -> Any:
    """The pipeline of a model with one text encoder, sharing all networks.

    Args:
        backbone: without an adapter.
        scheduler: name of a sampling scheduler.

    Raises:
        UserError: for a backbone without a pipeline.
    """
    import diffusers

    name = pipeline_name(backbone)
    components = {
        backbone.denoiser_name: backbone.denoiser,
        "vae": backbone.vae,
        "text_encoder": backbone.text_encoders[0],
        "tokenizer": backbone.tokenizers[0],
        "scheduler": make_scheduler(backbone.noise_scheduler, scheduler),
    }
    if name == "StableDiffusionPipeline":
        components |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipeline = getattr(diffusers, name)(**components)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def fix_eos_pooling(pipeline: Any) -> None:
    """Makes the text encoders pool at the EOS token in prompts with added tokens.

    The published configs of SD and SDXL have ``eos_token_id`` 2, for which transformers pools at the largest id: EOS,
    until an embedding with a larger id is loaded.
    """
    for ending in ("", "_2"):
        encoder, tokenizer = (getattr(pipeline, f"{name}{ending}", None) for name in ("text_encoder", "tokenizer"))
        if encoder is not None and tokenizer is not None:
            for part in (encoder, getattr(encoder, "text_model", None)):
                if part is not None and hasattr(part, "eos_token_id"):
                    part.eos_token_id = tokenizer.eos_token_id


def pipeline_seed(seed: int) -> int:
    """Seed of a pipeline's CPU generator for the initial noise of ``sample`` with ``seed``."""
    return derive_seed(seed, "sample")
