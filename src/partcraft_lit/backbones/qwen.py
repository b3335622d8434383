"""Prompts for Qwen3 as FLUX.2 klein reads them: a chat template, and hidden states of several layers side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.backbones.text import overwrite_positions
from partcraft_lit.backbones.text_format import PromptFormat, around
from partcraft_lit.core.errors import UserError

#: Layers whose hidden states FLUX.2 klein reads; 0 is the embedding.
KLEIN_LAYERS = (9, 18, 27)
#: Longest text of FLUX.2 klein, the chat template included.
KLEIN_LENGTH = 512


def chat_format(tokenizer: Any, max_length: int = KLEIN_LENGTH) -> PromptFormat:
    """A prompt as the message of a user, answered without thinking; ids are those of ``Flux2KleinPipeline``.

    Args:
        tokenizer: of Qwen, with a chat template.
        max_length: positions of the text.

    Raises:
        UserError: if the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            "The tokenizer of this model has no chat template, through which FLUX.2 klein reads prompts: "
            "tokenizer/chat_template.jinja is missing, and there is none in tokenizer/tokenizer_config.json. Copy the "
            "whole repository of the model."
        )

    def template(prompt: str) -> str:
        message = [{"role": "user", "content": prompt}]
        return str(
            tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        )

    prefix, suffix = around(tokenizer, template)
    return PromptFormat(tokenizer, max_length, None, prefix, suffix)


def keep_read_layers(text_encoder: Any, layers: Sequence[int]) -> None:
    """Drops the layers behind those whose hidden states are read, and the head; what is read stays the same.

    One layer more is kept: hidden states behind the last one are normalised.

    Raises:
        UserError: if the encoder has too few layers.
    """
    network = text_encoder.model
    if max(layers) >= len(network.layers):
        raise UserError(
            f"FLUX.2 klein reads layers {', '.join(map(str, layers))} of its text encoder, and this one has "
            f"{len(network.layers)}: it is another encoder. Use Qwen3, or set backbone.text_layers."
        )
    network.layers = network.layers[: max(layers) + 1]
    network.config.num_hidden_layers = len(network.layers)
    text_encoder.lm_head = torch.nn.Identity()


def encode_qwen(
    text_encoder: Any,
    input_ids: Tensor,
    attention_mask: Tensor,
    positions: Tensor,
    vectors: Tensor | None,
    layers: Sequence[int] = KLEIN_LAYERS,
) -> Tensor:
    """Hidden states of several layers, side by side.

    Args:
        text_encoder: a Qwen3ForCausalLM.
        input_ids: (B, L).
        attention_mask: (B, L), false at padding.
        positions: (B, T) of part tokens, negative where unused.
        vectors: (B, T, width), which replace their embeddings; None leaves what stands there.
        layers: whose hidden states are read.

    Returns:
        (B, L, layers * width).
    """
    network = text_encoder.model
    embeddings = network.get_input_embeddings()(input_ids)
    if vectors is not None:
        embeddings = overwrite_positions(embeddings, positions, vectors)
    output = network(
        inputs_embeds=embeddings, attention_mask=attention_mask.long(), output_hidden_states=True, use_cache=False
    )
    return torch.cat([output.hidden_states[layer] for layer in layers], dim=-1)
