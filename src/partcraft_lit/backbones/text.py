"""Text encoding with part vectors in place of some token embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from partcraft_lit.core.types import TokenizedPrompts


def plain_tokens(tokenizers: Sequence[Any], prompts: Sequence[str], max_length: int = 77) -> TokenizedPrompts:
    """Tokenizes prompts without part tokens; long ones are truncated."""
    ids = tuple(
        tokenizer(
            list(prompts), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
        ).input_ids
        for tokenizer in tokenizers
    )
    none = torch.empty((len(prompts), 0), dtype=torch.long)
    return TokenizedPrompts(input_ids=ids, part_positions=none, part_ids=none.clone(), code_ids=none.clone())


def overwrite_positions(embeddings: Tensor, positions: Tensor, vectors: Tensor) -> Tensor:
    """Replaces rows of a sequence, without loops or device synchronisation.

    Args:
        embeddings: (B, L, D).
        positions: (B, T) in 0...L-1, each at most once per row; negative where unused.
        vectors: (B, T, D), cast to the dtype of ``embeddings``; ignored at unused positions.

    Returns:
        (B, L, D), a new tensor; gradients reach both inputs.

    Raises:
        ValueError: if the shapes do not match.
    """
    if positions.shape[0] != embeddings.shape[0] or vectors.shape != (*positions.shape, embeddings.shape[-1]):
        raise ValueError(
            f"part vectors must be (B, T, D) for embeddings (B, L, D) and positions (B, T); got vectors "
            f"{tuple(vectors.shape)}, embeddings {tuple(embeddings.shape)} and positions {tuple(positions.shape)}."
        )
    if positions.shape[1] == 0:
        # The empty sum keeps the vectors in the graph: DDP expects a gradient for every parameter, also of a batch
        # without part tokens.
        return embeddings + vectors.sum().to(embeddings.dtype) if vectors.requires_grad else embeddings
    places = torch.arange(embeddings.shape[1], device=positions.device)
    hit = positions[:, :, None] == places  # (B, T, L)
    source = hit.to(torch.uint8).argmax(dim=1)  # (B, L): which part token each place takes, 0 where none
    chosen = vectors.gather(1, source[:, :, None].expand(-1, -1, vectors.shape[-1]))  # (B, L, D)
    return torch.where(hit.any(dim=1)[:, :, None], chosen.to(embeddings.dtype), embeddings)


@contextmanager
def overwritten_embeddings(text_encoder: nn.Module, positions: Tensor, vectors: Tensor) -> Iterator[None]:
    """Overwrites the encoder's token embeddings, before position embeddings are added, by a hook on the table.

    CLIPTextModel takes no ``inputs_embeds``, and its causal mask and EOS pooling stay untouched.
    """

    def overwrite(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return overwrite_positions(output, positions, vectors)

    handle = text_encoder.get_input_embeddings().register_forward_hook(overwrite)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def encode_text(
    text_encoder: nn.Module,
    input_ids: Tensor,
    positions: Tensor,
    vectors: Tensor | None,
    output_hidden_states: bool = False,
) -> Any:
    """Runs one CLIP text encoder; without part tokens, the same as calling it.

    Args:
        text_encoder: a CLIPTextModel or CLIPTextModelWithProjection.
        input_ids: (B, L); an ordinary id at part tokens, so that EOS pooling works.
        positions: (B, T), -1 where unused.
        vectors: (B, T, D) or None.
        output_hidden_states: as of the encoder.

    Raises:
        ValueError: for part tokens without vectors: their ordinary ids would be read as words.
    """
    _choose_attention(text_encoder)
    if vectors is None:
        if positions.shape[1] and bool((positions >= 0).any()):
            raise ValueError("The prompts hold part tokens, so their vectors are needed, (B, T, width); got None.")
        return text_encoder(input_ids, output_hidden_states=output_hidden_states)
    with overwritten_embeddings(text_encoder, positions, vectors):
        return text_encoder(input_ids, output_hidden_states=output_hidden_states)


def _choose_attention(text_encoder: nn.Module) -> None:
    """Eager attention in bfloat16 on a CPU, where the fused kernel is slower, see ``cpu_attention``."""
    weight = next(text_encoder.parameters())
    short = weight.device.type == "cpu" and torch.bfloat16 in (weight.dtype, _autocast_dtype("cpu"))
    wanted = "eager" if short else "sdpa"
    if text_encoder.config._attn_implementation != wanted:  # type: ignore[union-attr]
        text_encoder.set_attn_implementation(wanted)  # type: ignore[operator]


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
