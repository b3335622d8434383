"""Loads the components of FLUX.2 klein from a folder or the hub; what is missing or too large is said before."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from partcraft_lit.backbones.components import explain_load_errors
from partcraft_lit.backbones.latent_model import Precision
from partcraft_lit.backbones.quantization import Quantization, bytes_per_weight, require
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


def load_klein(
    source: str | Path,
    revision: str | None,
    dtype: Precision,
    quantize: Quantization | None,
    device: torch.device,
) -> KleinComponents:
    """Loads a folder in diffusers' format or a hub id; the smallest component first.

    Args:
        source: folder or hub id.
        revision: of a hub id.
        dtype: of transformer and text encoder.
        quantize: what they will be quantized to.
        device: where they will be.

    Raises:
        UserError: if the source is missing, incomplete, gated or of another model, a package for ``quantize`` is
            missing, or the weights are more than the device has memory for.
    """
    import diffusers
    import transformers

    if quantize is not None:
        require(quantize)
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
                f"this is another model. Wanted is for instance {EXAMPLE}."
            )
        transformer_config = diffusers.Flux2Transformer2DModel.load_config(location, subfolder="transformer", **chosen)
        _check_memory(transformer_config, encoder_config, wanted, quantize, device)
        vae = diffusers.AutoencoderKLFlux2.from_pretrained(location, subfolder="vae", **chosen)
        text_encoder = transformers.Qwen3ForCausalLM.from_pretrained(
            location, subfolder="text_encoder", dtype=wanted, **chosen
        )
        transformer = diffusers.Flux2Transformer2DModel.from_pretrained(
            location, subfolder="transformer", torch_dtype=wanted, **chosen
        )
    return KleinComponents(transformer, vae.float(), text_encoder, tokenizer, scheduler)


def count_weights(transformer_config: Any, encoder_config: Any) -> tuple[int, int]:
    """Weights of transformer and text encoder, from their settings alone."""
    from diffusers import Flux2Transformer2DModel
    from transformers import Qwen3Model

    with torch.device("meta"):
        networks = Flux2Transformer2DModel.from_config(transformer_config), Qwen3Model(encoder_config)
    transformer, encoder = (sum(weight.numel() for weight in network.parameters()) for network in networks)
    return transformer, encoder


def _check_memory(
    transformer_config: Any,
    encoder_config: Any,
    dtype: torch.dtype,
    quantize: Quantization | None,
    device: torch.device,
) -> None:
    """Weights alone; what training takes beside them is measured by ``partcraft doctor``."""
    free = _free_memory(device)
    weights = sum(count_weights(transformer_config, encoder_config))
    needed = weights * bytes_per_weight(dtype, quantize)
    if free is None or needed <= _FOR_WEIGHTS * free:
        return
    smaller = "" if quantize else " backbone.quantize=int8 halves what bfloat16 takes;"
    half = "" if dtype != torch.float32 or quantize else " backbone.dtype=bfloat16 halves them;"
    raise UserError(
        f"The {weights / 1e9:.1f} billion weights of this model take {needed / 1e9:.1f} GB as "
        f"{quantize or str(dtype).removeprefix('torch.')}, and {device} has {free / 1e9:.1f} GB free.{half}{smaller} "
        "'partcraft doctor' measures a step where they fit."
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
    """That all components are there, before weights are read."""
    lacking = [
        f"{part}/{' or '.join(files)}"
        for part, files in _FOLDERS.items()
        if not any((folder / part / file).is_file() for file in files)
    ]
    if (folder / "unet").is_dir():
        raise UserError(f"{folder} holds a model with a UNet: it is no FLUX.2. Use backbone=sd15 or backbone=sdxl.")
    if lacking:
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:12])
        raise UserError(
            f"{folder} is no complete FLUX.2 klein in diffusers' format: {', '.join(lacking)} missing; it holds "
            f"{found or 'nothing'}. Copy the whole repository, for example with `hf download {EXAMPLE} --local-dir "
            f"FOLDER`."
        )
