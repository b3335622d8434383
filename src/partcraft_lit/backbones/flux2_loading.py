"""Loads the components of FLUX.2 klein from a folder or the hub; what is missing or too large is said before."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from partcraft_lit.backbones.components import check_complete, explain_load_errors
from partcraft_lit.backbones.latent_model import Precision
from partcraft_lit.backbones.quantization import bytes_of, require
from partcraft_lit.backbones.settings import Quantization
from partcraft_lit.core.errors import UserError

EXAMPLE = "black-forest-labs/FLUX.2-klein-base-4B"
#: Sub-folder -> files of which it must have one.
_FOLDERS = {
    "transformer": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "tokenizer": ("tokenizer.json", "vocab.json"),
    "scheduler": ("scheduler_config.json",),
}
#: Share of the free memory that weights may take; the rest is for what works with them.
_FOR_WEIGHTS = 0.95


@dataclass(frozen=True)
class KleinComponents:
    """Networks on the CPU in the wanted dtype (the VAE in float32), the tokenizer and the scheduler."""

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any


@dataclass(frozen=True)
class Placement:
    """What becomes of the networks once they are loaded.

    Attributes:
        quantize: of their linear layers.
        text_layers: of the text encoder, whose hidden states are read; those behind them are dropped.
        offload_text_encoder: whether it stays on the CPU.
        device: where the others go.
    """

    quantize: Quantization | None
    text_layers: tuple[int, ...]
    offload_text_encoder: bool
    device: torch.device


def load_klein(source: str | Path, revision: str | None, dtype: Precision, placement: Placement) -> KleinComponents:
    """Loads a folder in diffusers' format or a hub id; the smallest component first.

    Args:
        source: folder or hub id.
        revision: of a hub id.
        dtype: of transformer and text encoder.
        placement: what becomes of them.

    Raises:
        UserError: if the source is missing, incomplete, gated or of another model, a package for ``quantize`` is
            missing, or the weights are more than the device has memory for.
    """
    import diffusers
    import transformers

    if placement.quantize is not None:
        require(placement.quantize)
    path = Path(source).expanduser()
    if path.is_dir():
        _check_folder(path)
    elif isinstance(source, Path) or str(source).startswith((".", "/", "~")) or str(source).count("/") > 1:
        raise UserError(
            f"No model at {path}. Give a folder in diffusers' format (model_index.json, transformer/, text_encoder/, "
            f"vae/, ...) or a hub id, such as {EXAMPLE}."
        )
    location = str(path) if path.is_dir() else str(source)
    chosen = {"revision": None if path.is_dir() else revision}
    wanted = getattr(torch, dtype)
    with explain_load_errors(location, revision):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_pretrained(location, subfolder="scheduler", **chosen)
        tokenizer = transformers.Qwen2Tokenizer.from_pretrained(location, subfolder="tokenizer", **chosen)
        encoder_config = transformers.AutoConfig.from_pretrained(location, subfolder="text_encoder", **chosen)
        if encoder_config.model_type != "qwen3":
            raise UserError(
                f"The text encoder of {location} is a {encoder_config.model_type!r}, and FLUX.2 klein has a Qwen3: "
                f"this is another model. Use for instance {EXAMPLE}."
            )
        transformer_config = diffusers.Flux2Transformer2DModel.load_config(location, subfolder="transformer", **chosen)
        _check_memory(transformer_config, encoder_config, wanted, placement)
        vae = diffusers.AutoencoderKLFlux2.from_pretrained(location, subfolder="vae", **chosen)
        text_encoder = transformers.Qwen3ForCausalLM.from_pretrained(
            location, subfolder="text_encoder", dtype=wanted, **chosen
        )
        transformer = diffusers.Flux2Transformer2DModel.from_pretrained(
            location, subfolder="transformer", torch_dtype=wanted, **chosen
        )
    return KleinComponents(transformer, vae.float(), text_encoder, tokenizer, scheduler)


def count_bytes(
    transformer_config: Any,
    encoder_config: Any,
    dtype: torch.dtype,
    quantize: Quantization | None,
    text_layers: Sequence[int],
) -> tuple[int, int]:
    """Bytes of the transformer, and of what is kept of the text encoder, from their settings alone."""
    from diffusers import Flux2Transformer2DModel
    from transformers import Qwen3Model

    kept = copy.deepcopy(encoder_config)
    kept.num_hidden_layers = min(max(text_layers) + 1, encoder_config.num_hidden_layers)
    kept.layer_types = kept.layer_types[: kept.num_hidden_layers]
    with torch.device("meta"):
        networks = Flux2Transformer2DModel.from_config(transformer_config), Qwen3Model(kept)
    transformer, encoder = (bytes_of(network, dtype, quantize) for network in networks)
    return transformer, encoder


def _check_memory(transformer_config: Any, encoder_config: Any, dtype: torch.dtype, placement: Placement) -> None:
    """Weights alone; what training takes beside them is measured by ``partcraft doctor``."""
    quantize, device = placement.quantize, placement.device
    transformer, encoder = count_bytes(transformer_config, encoder_config, dtype, quantize, placement.text_layers)
    away = placement.offload_text_encoder and device.type != "cpu"
    free, needed = _free_memory(device), transformer + (0 if away else encoder)
    if free is None or needed <= _FOR_WEIGHTS * free:
        return
    advice = []
    if dtype == torch.float32:
        advice.append("backbone.dtype=bfloat16 halves them.")
    if quantize is None:
        advice.append("hardware.quantize=int8 takes half of bfloat16.")
    if not placement.offload_text_encoder and device.type != "cpu":
        advice.append(
            f"backbone.offload_text_encoder=true with method.tokens.inject=after saves {encoder / 1e9:.1f} GB."
        )
    raise UserError(
        f"The weights of transformer and text encoder take {needed / 1e9:.1f} GB as {quantize or dtype}, and "
        f"{device} has {free / 1e9:.1f} GB free. {' '.join(advice)} 'partcraft doctor' measures a step where they fit."
    )


def _free_memory(device: torch.device) -> float | None:
    """Bytes; None where nothing says."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        found = re.search(r"MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"))
    except OSError:
        return None
    return int(found[1]) * 1024.0 if found else None


def _check_folder(folder: Path) -> None:
    """Checks that all components are there, before weights are read."""
    if (folder / "unet").is_dir():
        raise UserError(
            f"{folder} holds a model with a UNet: it is not a FLUX.2 model. Use backbone=sd15 or backbone=sdxl."
        )
    check_complete(folder, _FOLDERS, "FLUX.2 klein", EXAMPLE)
