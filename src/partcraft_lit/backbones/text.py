"""Text encoding where some positions hold learned part vectors instead of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from partcraft_lit.core.types import TokenizedPrompts


def plain_tokens(tokenizers: Sequence[Any], prompts: Sequence[str], max_length: int = 77) -> TokenizedPrompts:
    """Prompts without part tokens, such as the empty prompt of classifier-free guidance; too long ones are cut."""
    ids = tuple(
        tokenizer(
            list(prompts), padding="max_length", max_length=max_length, truncation=True, return_tensors="pt"
        ).input_ids
        for tokenizer in tokenizers
    )
    none = torch.empty((len(prompts), 0), dtype=torch.long)
    return TokenizedPrompts(input_ids=ids, part_positions=none, part_ids=none.clone(), code_ids=none.clone())


def overwrite_positions(embeddings: Tensor, positions: Tensor, vectors: Tensor) -> Tensor:
    """Puts ``vectors`` in place of some rows of a sequence, without loops and without waiting for the device.

    Args:
        embeddings: (B, L, D).
        positions: (B, T) places in 0...L-1, each at most once per row; negative where unused.
        vectors: (B, T, D), cast to the type of ``embeddings``; values at unused places do not matter.

    Returns:
        (B, L, D), a new tensor; gradients reach both inputs, each where its values were used.

    Raises:
        ValueError: if the shapes do not belong together.
    """
    if positions.shape[0] != embeddings.shape[0] or vectors.shape != (*positions.shape, embeddings.shape[-1]):
        raise ValueError(
            f"part vectors must be (B, T, D) for embeddings (B, L, D) and positions (B, T); got vectors "
            f"{tuple(vectors.shape)}, embeddings {tuple(embeddings.shape)} and positions {tuple(positions.shape)}."
        )
    if positions.shape[1] == 0:
        # The empty sum keeps what made the vectors in the graph: several processes wait for the gradient of all that
        # trains, also where one of them has no part token in its batch.
        return embeddings + vectors.sum().to(embeddings.dtype) if vectors.requires_grad else embeddings
    places = torch.arange(embeddings.shape[1], device=positions.device)
    hit = positions[:, :, None] == places  # (B, T, L)
    source = hit.to(torch.uint8).argmax(dim=1)  # (B, L): which part token each place takes, 0 where none
    chosen = vectors.gather(1, source[:, :, None].expand(-1, -1, vectors.shape[-1]))  # (B, L, D)
    return torch.where(hit.any(dim=1)[:, :, None], chosen.to(embeddings.dtype), embeddings)


@contextmanager
def overwritten_embeddings(text_encoder: nn.Module, positions: Tensor, vectors: Tensor) -> Iterator[None]:
    """While it is open, the encoder's token embeddings are overwritten before position embeddings are added.

    A hook on the embedding table and not ``inputs_embeds``: CLIPTextModel takes none, and this way its causal mask and
    its pooled read at the end of the text stay its own.
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
    """Runs one CLIP text encoder; equal to calling it plainly where there are no part tokens.

    Args:
        text_encoder: a CLIPTextModel or CLIPTextModelWithProjection.
        input_ids: (B, L); a part token's place holds an ordinary id, so the encoder itself finds the end of the text.
        positions: (B, T), -1 where unused.
        vectors: (B, T, D) or None.
        output_hidden_states: also return every layer's output, for backbones that read an earlier layer.

    Raises:
        ValueError: if there are part tokens but no vectors: the ordinary ids would be read as words in silence.
    """
    _choose_attention(text_encoder)
    if vectors is None:
        if positions.shape[1] and bool((positions >= 0).any()):
            raise ValueError("The prompts hold part tokens, so their vectors are needed, (B, T, width); got None.")
        return text_encoder(input_ids, output_hidden_states=output_hidden_states)
    with overwritten_embeddings(text_encoder, positions, vectors):
        return text_encoder(input_ids, output_hidden_states=output_hidden_states)


def _choose_attention(text_encoder: nn.Module) -> None:
    """On a CPU in bfloat16 the fused kernel's backward pass is the slower one, as in ``attention``; 77 keys are few."""
    weight = next(text_encoder.parameters())
    short = weight.device.type == "cpu" and torch.bfloat16 in (weight.dtype, _autocast_dtype("cpu"))
    wanted = "eager" if short else "sdpa"
    if text_encoder.config._attn_implementation != wanted:  # type: ignore[union-attr]
        text_encoder.set_attn_implementation(wanted)  # type: ignore[operator]


def _autocast_dtype(device: str) -> torch.dtype | None:
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
