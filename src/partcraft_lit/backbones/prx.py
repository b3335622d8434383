"""PRX: a transformer trained by flow matching, with T5Gemma's encoder."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from partcraft_lit.backbones.joint_attention import Target
from partcraft_lit.backbones.latent_model import Precision, check_hash
from partcraft_lit.backbones.prx_loading import load_prx_components
from partcraft_lit.backbones.prx_model import PrxModel, check_attention_size
from partcraft_lit.backbones.text import overwritten_embeddings
from partcraft_lit.backbones.text_format import PromptFormat, around
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Conditioning, Flow, TokenizedPrompts

#: Positions of the text, as the models were trained.
PROMPT_LENGTH = 256


class PRX(PrxModel):
    """PRX at one resolution.

    Args:
        text_encoder: transformers' T5GemmaEncoder.
        tokenizer: its fast tokenizer.
        scheduler: FlowMatchEulerDiscreteScheduler.
        max_length: positions of the text; None for the tokenizer's own, at most ``PROMPT_LENGTH``.
        others: see ``PrxModel``.

    Source: diffusers' PRXPipeline. Differs: a prompt that is too long is refused and not cut.
    """

    def __init__(
        self, *, text_encoder: Any, tokenizer: Any, scheduler: Any, max_length: int | None = None, **others: Any
    ) -> None:
        super().__init__(
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            flow=training_flow(scheduler),
            **others,
        )
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
    attention_target: Target = "probabilities",
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
        attention_blocks, attention_target, max_length, dtype, vae_dtype: see ``PRX`` and ``PrxModel``.
        attention_size: None, or the side of the maps, of which this model has one.
        name: recorded with runs.

    Raises:
        UserError: if ftfy, the source, a component or the memory for it is missing, or it holds other weights than
            ``sha256`` says.
    """
    check_ftfy()
    components = load_prx_components(source, revision, variant, resolution, dtype, device)
    backbone = PRX(
        name=name,
        transformer=components.transformer,
        vae=components.vae,
        text_encoder=components.text_encoder,
        tokenizer=components.tokenizer,
        scheduler=components.scheduler,
        resolution=resolution,
        attention_blocks=attention_blocks,
        attention_target=attention_target,
        max_length=max_length,
        dtype=dtype,
        vae_dtype=vae_dtype,
    )
    check_attention_size(backbone, attention_size)
    check_hash(backbone, sha256)
    return backbone.to(device)
