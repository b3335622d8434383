"""PRX and FLUX.2 klein with random weights in their published sizes, or tiny, for ``full_size.py`` and ``gpu.py``.

``python benchmarks/transformer_sizes.py`` prints their counts, as ``full_size.py`` does with those of the UNets.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from full_size import PARTS, Case
from torch import nn

from partcraft_lit.backbones import latent_model
from partcraft_lit.backbones.flux2_klein import Flux2Klein
from partcraft_lit.backbones.latent_model import LatentModel
from partcraft_lit.backbones.lora import add_lora, remove_lora
from partcraft_lit.backbones.prx import PRX, training_flow
from partcraft_lit.backbones.prx_model import PrxModel
from partcraft_lit.core.types import TokenizedPrompts

KINDS = ("prx", "flux2_klein")
#: Positions of the text.
_LENGTHS = {"prx": 256, "flux2_klein": 512}


class _PRX(PRX):
    """Without a tokenizer: prompts are given as ids."""

    def __init__(self, *, scheduler: Any, **others: Any) -> None:
        PrxModel.__init__(self, tokenizer=None, scheduler=scheduler, flow=training_flow(scheduler), **others)


def build(case: Case) -> LatentModel:
    """Random weights, made in their number format where they are used; they are not hashed."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, case.weights))
    try:
        with torch.device(case.device):
            networks = _prx(case.small) if case.kind == "prx" else _klein(case.small)
    finally:
        torch.set_default_dtype(default)
    if case.offloaded:
        networks["text_encoder"].to("cpu")
    common = {"name": case.kind, "resolution": case.resolution, "dtype": case.weights, **networks}
    with mock.patch.object(latent_model, "weights_hash", return_value="random"):
        if case.kind == "prx":
            return _PRX(**common)
        if case.small:
            common |= {"text_layers": (1, 2, 3)}
        with mock.patch("partcraft_lit.backbones.flux2_klein.chat_format", return_value=None):
            return Flux2Klein(tokenizer=None, quantize=case.quantize, offload_text_encoder=case.offloaded, **common)  # type: ignore[arg-type]


def prompts(case: Case) -> TokenizedPrompts:
    """Nothing but part tokens, then padding."""
    length, tokens = _LENGTHS[case.kind], PARTS + 1
    each = torch.arange(tokens).expand(case.batch, tokens)
    mask = (torch.arange(length) < tokens + 20).expand(case.batch, length)
    return TokenizedPrompts((torch.full((case.batch, length), 5),), each, each, torch.zeros_like(each), None, mask)


def counts() -> list[str]:
    """Rows of Markdown, on the meta device: nothing is computed."""
    lines = ["| model | transformer | text encoder | LoRA r4 cross | LoRA r4 all |", "|---|---|---|---|---|"]
    for kind in KINDS:
        with torch.device("meta"):
            networks = _prx(small=False) if kind == "prx" else _klein(small=False)
        transformer, encoder = networks["transformer"], networks["text_encoder"]
        cells = [_count(transformer), _count(encoder)]
        kinds: dict[str, Any] = {"prx": PRX, "flux2_klein": Flux2Klein}
        shape: Any = SimpleNamespace(transformer=transformer)
        shape._attentions = lambda shape=shape: PRX._attentions(shape)
        for scope in ("cross", "all"):
            targets = kinds[kind].lora_targets(shape, scope)
            added = add_lora(transformer, rank=4, scope=scope, targets=targets)  # type: ignore[arg-type]
            cells.append(sum(parameter.numel() for parameter in added))
            remove_lora(transformer)
        lines.append(f"| {kind} | {' | '.join(f'{cell:,}' for cell in cells)} |")
    return lines


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _prx(small: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, PRXTransformer2DModel
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig
    from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder

    sizes: dict[str, Any] = {}
    text: dict[str, Any] = {"dropout_rate": 0.0}
    if small:
        sizes = {"hidden_size": 32, "num_heads": 2, "depth": 4, "context_in_dim": 32, "axes_dim": [8, 8]}
        text |= {
            "vocab_size": 64,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
        }
    return {
        "transformer": PRXTransformer2DModel(**sizes),
        "text_encoder": T5GemmaEncoder(T5GemmaModuleConfig(**text)),
        "vae": AutoencoderKL(**_vae(small, latent_channels=16)),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _klein(small: bool) -> dict[str, Any]:
    from diffusers import AutoencoderKLFlux2, FlowMatchEulerDiscreteScheduler, Flux2Transformer2DModel
    from transformers import Qwen3Config, Qwen3ForCausalLM

    sizes: dict[str, Any] = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24}
    text: dict[str, Any] = {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    }
    if small:
        sizes = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
        sizes |= {"axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16}
        text = {**text, "vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 4}
        text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    return {
        "transformer": Flux2Transformer2DModel(
            joint_attention_dim=3 * text["hidden_size"], guidance_embeds=False, **sizes
        ),
        "text_encoder": Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=True, **text)),
        "vae": AutoencoderKLFlux2(**_vae(small, latent_channels=32)),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }


def _vae(small: bool, latent_channels: int) -> dict[str, Any]:
    """Never run here; its channels and its factor of 8 count."""
    widths = (8, 8, 8, 8) if small else (128, 256, 512, 512)
    return {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1 if small else 2,
        "norm_num_groups": 4 if small else 32,
        "latent_channels": latent_channels,
    }


if __name__ == "__main__":
    print("\n".join(counts()))
