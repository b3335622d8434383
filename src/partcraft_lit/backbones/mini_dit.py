"""The miniature diffusion transformer: PRX's class at small widths, with the miniature's CLIP text encoder and VAE."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.backbones.components import explain_load_errors
from partcraft_lit.backbones.joint_attention import Target
from partcraft_lit.backbones.latent_model import Precision
from partcraft_lit.backbones.loading import packaged_weights
from partcraft_lit.backbones.prx_model import PrxModel, check_attention_size
from partcraft_lit.backbones.text import encode_text
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import Conditioning, Flow, TokenizedPrompts

#: Sub-folders of the weights.
_FOLDERS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")


class MiniDiT(PrxModel):
    """One CLIP text encoder, read at its last layer from the start to the end of the text; see ``PrxModel``."""

    def __init__(self, *, scheduler: Any, **others: Any) -> None:
        super().__init__(scheduler=scheduler, flow=training_flow(float(scheduler.config.shift)), **others)

    def encode_text(self, tokens: TokenizedPrompts, part_vectors: Tensor | None) -> Conditioning:
        """The last layer of the text encoder, and the mask of the padding behind the end of the text."""
        (input_ids,) = tokens.input_ids
        output = encode_text(self.text_encoders[0], input_ids, tokens.part_positions, part_vectors)
        mask = text_mask(input_ids, int(self.tokenizers[0].eos_token_id))
        return Conditioning(output.last_hidden_state, attention_mask=mask)


def training_flow(shift: float) -> Flow:
    """The density of its own pretraining: logit-normal and shifted like the sampler's, one in ten uniform."""
    return Flow(density="logit_normal", shift=shift, uniform_share=0.1)


def text_mask(input_ids: Tensor, eos_token_id: int) -> Tensor:
    """(B, L) bool: True up to the first end of the text."""
    ends = (input_ids == eos_token_id).int()
    return (ends.cumsum(dim=1) - ends) == 0


def load_mini_dit(
    path: str | Path | None = None,
    device: torch.device | str = "cpu",
    *,
    resolution: int = 64,
    attention_blocks: Sequence[int] | None = None,
    attention_target: Target = "probabilities",
    attention_size: int | None = None,
    dtype: Precision = "float32",
) -> MiniDiT:
    """The miniature diffusion transformer: the weights in the package, or another folder in the same format.

    Raises:
        UserError: if the folder is missing or incomplete.
    """
    import transformers
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, PRXTransformer2DModel

    folder = packaged_weights("mini_dit") if path is None else Path(path).expanduser()
    if missing := [part for part in _FOLDERS if not (folder / part).is_dir()]:
        raise UserError(f"{folder} is not a miniature diffusion transformer: {', '.join(missing)} missing.")
    location = str(folder)
    with explain_load_errors(location):
        backbone = MiniDiT(
            name="mini_dit",
            transformer=PRXTransformer2DModel.from_pretrained(location, subfolder="transformer").float(),
            vae=AutoencoderKL.from_pretrained(location, subfolder="vae").float(),
            text_encoder=transformers.CLIPTextModel.from_pretrained(location, subfolder="text_encoder").float(),
            tokenizer=transformers.CLIPTokenizer.from_pretrained(location, subfolder="tokenizer"),
            scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(location, subfolder="scheduler"),
            resolution=resolution,
            attention_blocks=attention_blocks,
            attention_target=attention_target,
            dtype=dtype,
        )
    check_attention_size(backbone, attention_size)
    return backbone.to(device)
