"""Loads PRX's components from a folder in diffusers' format or the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from partcraft_lit.backbones.components import TOKENIZER_FILES, check_complete, explain_load_errors
from partcraft_lit.backbones.latent_model import Precision
from partcraft_lit.backbones.prx_model import checked_step
from partcraft_lit.core.errors import UserError

#: Sub-folder -> files of which it must have one.
_FOLDERS = {
    "transformer": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "tokenizer": TOKENIZER_FILES,
    "scheduler": ("scheduler_config.json",),
}
_VAES = ("AutoencoderKL", "AutoencoderDC")
_EXAMPLE = "Photoroom/prx-512-t2i-sft"
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}


@dataclass(frozen=True)
class PrxComponents:
    """Networks of diffusers and transformers, a fast tokenizer, and the scheduler."""

    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any


def load_prx_components(
    source: str | Path,
    revision: str | None,
    variant: str | None,
    resolution: int,
    dtype: Precision,
    device: torch.device | str,
) -> PrxComponents:
    """Loads a folder or a hub id, small components first.

    Args:
        source: folder or hub id.
        revision, variant: of a hub id, and of the weights' files.
        resolution: that the model must fit.
        dtype: of transformer and text encoder, in which they are read.
        device: where they will go, which must have the memory for them.

    Raises:
        UserError: for a missing library class, folder, component or memory, or a resolution that does not fit, before
            any weights are read.
    """
    classes = _classes()
    path = Path(source).expanduser()
    if path.is_dir():
        check_complete(path, _FOLDERS, "PRX model", _EXAMPLE)
        _check_memory(path, dtype, torch.device(device))
    elif path.is_file() or isinstance(source, Path) or str(source).count("/") != 1:
        raise UserError(
            f"No PRX model at {source}. Give a folder in diffusers' format ({', '.join(_FOLDERS)}), or a hub id such "
            f"as {_EXAMPLE}."
        )
    location = str(path) if path.is_dir() else str(source)
    chosen = {"revision": revision}
    with explain_load_errors(location, revision, variant):
        scheduler = classes["FlowMatchEulerDiscreteScheduler"].from_pretrained(
            location, subfolder="scheduler", **chosen
        )
        tokenizer = classes["AutoTokenizer"].from_pretrained(location, subfolder="tokenizer", **chosen)
        vae_class, factor = _vae_class(location, chosen)
        patches = classes["PRXTransformer2DModel"].load_config(location, subfolder="transformer", **chosen)
        checked_step(resolution, factor, int(patches["patch_size"]))
        vae = classes[vae_class].from_pretrained(location, subfolder="vae", variant=variant, **chosen)
        config = _encoder_config(location, chosen)
        text_encoder = classes["T5GemmaEncoder"].from_pretrained(
            location, subfolder="text_encoder", config=config, variant=variant, dtype=getattr(torch, dtype), **chosen
        )
        transformer = classes["PRXTransformer2DModel"].from_pretrained(
            location, subfolder="transformer", variant=variant, dtype=getattr(torch, dtype), **chosen
        )
    return _checked(location, PrxComponents(transformer, vae, text_encoder, tokenizer, scheduler))


def _classes() -> dict[str, Any]:
    """The libraries' classes.

    Raises:
        UserError: if an older version lacks one.
    """
    import diffusers
    import transformers

    try:
        from transformers.models.t5gemma.modeling_t5gemma import T5GemmaEncoder
    except ImportError as error:
        raise UserError(
            f"backbone=prx needs T5GemmaEncoder, which transformers {transformers.__version__} does not have: pip "
            "install 'transformers>=4.54'."
        ) from error
    names = ("PRXTransformer2DModel", "FlowMatchEulerDiscreteScheduler", *_VAES)
    missing = [name for name in names if not hasattr(diffusers, name)]
    if missing:
        raise UserError(
            f"backbone=prx needs {', '.join(missing)}, which diffusers {diffusers.__version__} does not have: pip "
            "install 'diffusers>=0.36'."
        )
    found = {name: getattr(diffusers, name) for name in names}
    return {**found, "T5GemmaEncoder": T5GemmaEncoder, "AutoTokenizer": transformers.AutoTokenizer}


def _check_memory(folder: Path, dtype: Precision, device: torch.device) -> None:
    """Compares the sizes of the weights' files with the memory that is free.

    Raises:
        UserError: if transformer and text encoder do not fit.
    """
    needed = sum(_parameters(folder / part) for part in ("transformer", "text_encoder")) * _BYTES[dtype]
    free = _free_bytes(device)
    if free is not None and needed > free:
        raise UserError(
            f"The transformer and the text encoder of {folder.name} take {needed / 1e9:.1f} GB in {dtype}, and "
            f"{device.type} has {free / 1e9:.1f} GB free. backbone.dtype=bfloat16 is the smallest; else use another "
            "machine, or backbone=mini."
        )


def _parameters(folder: Path) -> int:
    """Numbers in the safetensors files of a component, from their sizes."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return 0
    with safe_open(files[0], framework="pt") as opened:
        name = next(iter(opened.keys()))
        stored = _STORED_BYTES.get(opened.get_slice(name).get_dtype(), 2)
    return sum(file.stat().st_size for file in files) // stored


def _free_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where it is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines)
    return int(values["MemAvailable"].split()[0]) * 1024


def _vae_class(location: str, chosen: dict[str, Any]) -> tuple[str, int]:
    """Class of the VAE, and pixels per latent."""
    from diffusers import AutoencoderKL

    config = AutoencoderKL.load_config(location, subfolder="vae", **chosen)
    name = str(config.get("_class_name"))
    if name not in _VAES:
        raise UserError(f"The VAE of {location} is {name}, and PRX has {' or '.join(_VAES)}.")
    levels = config["block_out_channels" if name == "AutoencoderKL" else "encoder_block_out_channels"]
    return name, 2 ** (len(levels) - 1)


def _encoder_config(location: str, chosen: dict[str, Any]) -> Any:
    """Of the encoder alone, also where the file is that of the whole encoder-decoder."""
    from transformers import PreTrainedConfig
    from transformers.models.t5gemma.configuration_t5gemma import T5GemmaModuleConfig

    values, _ = PreTrainedConfig.get_config_dict(location, subfolder="text_encoder", **chosen)
    config = T5GemmaModuleConfig.from_dict(values.get("encoder", values))
    if not hasattr(config, "dropout_rate"):  # a setting of the whole that its encoder reads
        config.dropout_rate = float(values.get("dropout_rate", 0.0))
    return config


def _checked(location: str, components: PrxComponents) -> PrxComponents:
    """Components that belong together."""
    width = int(components.transformer.config.context_in_dim)
    given = int(components.text_encoder.config.hidden_size)
    if width != given:
        raise UserError(f"The transformer of {location} reads text of width {width}, its text encoder gives {given}.")
    channels = (int(components.transformer.config.in_channels), int(components.vae.config.latent_channels))
    if channels[0] != channels[1]:
        raise UserError(f"The transformer of {location} has {channels[0]} channels, its VAE {channels[1]}.")
    known, rows = len(components.tokenizer), int(components.text_encoder.config.vocab_size)
    if known > rows:
        raise UserError(f"The tokenizer of {location} has {known} tokens and the text encoder {rows}.")
    return components
