"""Where a Stable Diffusion model comes from: a folder, a single file or the hub; and what to do when it is missing."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from partcraft_lit.errors import UserError, did_you_mean

#: Sub-folders of diffusers' format, and a file that each must have.
_FOLDER_PARTS = {
    "unet": ("config.json",),
    "vae": ("config.json",),
    "text_encoder": ("config.json",),
    "tokenizer": ("vocab.json", "tokenizer.json"),
    "scheduler": ("scheduler_config.json",),
}
#: Hub repositories whose tokenizer is that of every SD 1.x and 2.x model, with the sub-folder.
_TOKENIZER_REPOSITORIES = (
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("openai/clip-vit-large-patch14", ""),
)


@dataclass(frozen=True)
class Components:
    """Networks in float32 on the CPU, the tokenizer, and any scheduler that carries the noise schedule."""

    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any


def load_components(
    source: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
) -> Components:
    """Loads from a local folder, a single ``.safetensors`` file or a hub id, told apart by what is on the disk.

    Raises:
        UserError: see ``backbones.stable_diffusion.load_sd15``.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        _check_folder(path)
        return _load_pretrained(str(path), None, variant)
    if path.is_file():
        return _load_single_file(path, None if config is None else Path(config).expanduser())
    if _looks_like_a_path(source):
        raise UserError(_missing_path_message(path))
    return _load_pretrained(str(source), revision, variant)


def packaged_weights(name: str) -> Path:
    """Folder of weights that ship in the package.

    Raises:
        UserError: if they are not there.
    """
    folder = Path(str(resources.files("partcraft_lit"))) / "weights" / name
    if not (folder / "unet").is_dir():
        raise UserError(
            f"The packaged weights of backbone {name!r} are missing: {folder}. Install the package again, make them "
            f"with `partcraft pretrain`, or give a folder in diffusers' format with backbone.path=FOLDER."
        )
    return folder


def _looks_like_a_path(source: str | Path) -> bool:
    """A hub id is ``name`` or ``owner/name``; all else means a place on the disk."""
    text = str(source)
    is_marked = text.startswith((".", "/", "~")) or "\\" in text or text.count("/") > 1
    return isinstance(source, Path) or is_marked or text.endswith((".safetensors", ".ckpt", ".pt", ".bin"))


def _missing_path_message(path: Path) -> str:
    wanted = "a folder in diffusers' format (model_index.json, unet/, vae/, ...), a .safetensors file, or a hub id"
    parent = path.parent
    if not parent.is_dir():
        return f"No model at {path}: the folder {parent} does not exist either. Give {wanted}."
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir() or entry.suffix == ".safetensors"]
    return f"No model at {path}. Give {wanted}. {did_you_mean(path.name, siblings)}".rstrip()


def _check_folder(folder: Path) -> None:
    """Everything must be there before any weights are read."""
    if (folder / "text_encoder_2").is_dir():
        raise UserError(f"{folder} holds a model with two text encoders (SDXL); this backbone takes SD 1.x and 2.x.")
    lacking = [
        f"{part}/{' or '.join(files)}"
        for part, files in _FOLDER_PARTS.items()
        if not any((folder / part / file).is_file() for file in files)
    ]
    if lacking:
        found = sorted(entry.name for entry in folder.iterdir())[:12]
        raise UserError(
            f"{folder} is no complete model in diffusers' format: {', '.join(lacking)} missing; it holds "
            f"{', '.join(found) or 'nothing'}. Copy the whole repository, for example with "
            f"`hf download stable-diffusion-v1-5/stable-diffusion-v1-5 --local-dir FOLDER`."
        )


def _load_pretrained(location: str, revision: str | None, variant: str | None) -> Components:
    """A folder or a hub id; small parts first, so that a wrong id fails before gigabytes are fetched."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    with _explained(location, variant):
        scheduler = DDPMScheduler.from_pretrained(location, subfolder="scheduler", revision=revision)
        tokenizer = CLIPTokenizer.from_pretrained(location, subfolder="tokenizer", revision=revision)
        networks = {
            part: kind.from_pretrained(location, subfolder=part, revision=revision, variant=variant)
            for part, kind in (("text_encoder", CLIPTextModel), ("vae", AutoencoderKL), ("unet", UNet2DConditionModel))
        }
    return _components(location, tokenizer=tokenizer, scheduler=scheduler, **networks)


def _components(
    location: str, *, unet: nn.Module, vae: nn.Module, text_encoder: nn.Module, tokenizer: Any, scheduler: Any
) -> Components:
    _check_tokenizer(location, tokenizer, text_encoder)
    # Half precision files come up to float32 here: the two libraries differ in what they do without being told.
    return Components(unet.float(), vae.float(), text_encoder.float(), tokenizer, scheduler)


def _check_tokenizer(location: str, tokenizer: Any, text_encoder: Any) -> None:
    """transformers makes a tokenizer of two tokens out of files it does not find, without a word."""
    known, rows = len(tokenizer), int(text_encoder.config.vocab_size)
    if known < 256 or known > rows:  # CLIP's byte-level vocabulary begins with the 256 bytes
        raise UserError(
            f"The tokenizer of {location} has {known} tokens and the text encoder {rows}: they do not belong together, "
            f"or tokenizer/vocab.json and merges.txt are missing or damaged."
        )


@contextmanager
def _explained(location: str, variant: str | None) -> Iterator[None]:
    """Turns what the hub's libraries raise into what a person can do about it."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(_load_error_message(location, variant, error)) from error


def _load_error_message(location: str, variant: str | None, error: Exception) -> str:
    first_line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(location).is_dir():
        hint = f"Is there a file for variant {variant!r} in it? " if variant else ""
        return f"The model in {location} could not be read: {first_line} {hint}Copy or download the folder again."
    get_it = (
        f"To get it: `hf download {location}` on a machine with a network (its cache, HF_HOME, can be copied), or give "
        f"a local folder or .safetensors file instead, backbone.source=PATH."
    )
    if _offline():
        return f"The model {location!r} is not in the local cache, and HF_HUB_OFFLINE forbids fetching it. {get_it}"
    if "gated" in str(error).lower() or "401" in str(error) or "403" in str(error):
        return (
            f"The hub refuses {location!r}: the model may be gated (accept its terms on its page, then `hf auth "
            f"login`), private, or misspelt. {get_it}"
        )
    return f"The model {location!r} could not be loaded: {first_line} {get_it}"


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _load_single_file(path: Path, config: Path | None) -> Components:
    """A checkpoint in the original format, without any need of the network."""
    if path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no .safetensors file; other checkpoints can run code when they are read. Convert it, for "
            f"example StableDiffusionPipeline.from_single_file({path.name!r}).save_pretrained('FOLDER')."
        )
    if config is not None and not config.is_dir():
        raise UserError(
            f"backbone.config={config} is no folder; give one with a model's settings in diffusers' format."
        )
    tokenizer = _single_file_tokenizer(path, config)
    checkpoint = _read_checkpoint(path)
    if config is not None and (config / "unet" / "config.json").is_file():
        return _convert(path, checkpoint, config, tokenizer)
    _check_is_sd1(path, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        _write_sd1_settings(Path(folder))
        return _convert(path, checkpoint, Path(folder), tokenizer)


def _single_file_tokenizer(path: Path, config: Path | None) -> Any:
    """A checkpoint holds no tokenizer: it comes from the settings' folder, from beside the file, or from the hub."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    from transformers import CLIPTokenizer

    folders = [path.parent / "tokenizer", path.parent]
    if config is not None:
        folders = [config / "tokenizer", config, *folders]
    for folder in folders:
        if any((folder / file).is_file() for file in _FOLDER_PARTS["tokenizer"]):
            with _explained(str(folder), None):
                return CLIPTokenizer.from_pretrained(str(folder))
    for repository, subfolder in _TOKENIZER_REPOSITORIES:
        try:
            files = [hf_hub_download(repository, name, subfolder=subfolder) for name in ("vocab.json", "merges.txt")]
        except (OSError, HfHubHTTPError):
            continue
        return CLIPTokenizer.from_pretrained(str(Path(files[0]).parent))
    raise UserError(
        f"{path} holds no tokenizer, and none is beside it or in the hub's cache. Put vocab.json and merges.txt of "
        f"CLIP into {path.parent / 'tokenizer'}, or give backbone.config=FOLDER with a folder that has tokenizer/."
    )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no readable safetensors file ({error}). Was the download cut short?") from error


def _check_is_sd1(path: Path, checkpoint: dict[str, Any]) -> None:
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    first = checkpoint.get("model.diffusion_model.input_blocks.0.0.weight")
    if key not in checkpoint or first is None:
        raise UserError(f"{path} is no Stable Diffusion 1.x checkpoint in the original format: {key} is not in it.")
    context, inputs, width = checkpoint[key].shape[1], first.shape[1], first.shape[0]
    if (context, inputs, width) != (768, 4, 320):
        raise UserError(
            f"{path} is no plain SD 1.x checkpoint (text width {context}, latent channels {inputs}, first width "
            f"{width}; wanted 768, 4 and 320). For SD 2.x and others, also give backbone.config=FOLDER with the "
            f"model's settings in diffusers' format: the file does not say how it predicts."
        )


def _convert(path: Path, checkpoint: dict[str, Any], config: Path, tokenizer: Any) -> Components:
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm
    from transformers import CLIPTextModel

    settings = {"config": str(config), "local_files_only": True}
    try:
        networks = {
            "unet": UNet2DConditionModel.from_single_file(dict(checkpoint), subfolder="unet", **settings),
            "vae": AutoencoderKL.from_single_file(dict(checkpoint), subfolder="vae", **settings),
            "text_encoder": create_diffusers_clip_model_from_ldm(
                CLIPTextModel, checkpoint=dict(checkpoint), subfolder="text_encoder", **settings
            ),
        }
        scheduler = DDPMScheduler.from_pretrained(config, subfolder="scheduler", local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SingleFileComponentError) as error:
        raise UserError(f"{path} does not fit the settings in {config}: {error}") from error
    _check_complete(path, networks)
    return _components(str(path), tokenizer=tokenizer, scheduler=scheduler, **networks)


def _check_complete(path: Path, networks: dict[str, Any]) -> None:
    """A weight that the file did not hold is left without storage by the converter."""
    lacking = [
        f"{part}: {name}"
        for part, network in networks.items()
        for name, parameter in network.named_parameters()
        if parameter.is_meta
    ]
    if lacking:
        raise UserError(
            f"{path} lacks {len(lacking)} weights, first {lacking[0]}. It may hold the UNet only, or be cut short."
        )


def _write_sd1_settings(folder: Path) -> None:
    """Settings that all SD 1.x models share, as published with v1.5 (what a checkpoint's tensors do not say)."""
    files: dict[str, dict[str, Any]] = {
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel",
            "sample_size": 64,
            "in_channels": 4,
            "out_channels": 4,
            "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2,
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL",
            "sample_size": 512,
            "block_out_channels": [128, 256, 512, 512],
            "layers_per_block": 2,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "latent_channels": 4,
            "scaling_factor": 0.18215,
        },
        "text_encoder/config.json": {
            "architectures": ["CLIPTextModel"],
            "model_type": "clip_text_model",
            "vocab_size": 49408,
            "hidden_size": 768,
            "intermediate_size": 3072,
            "projection_dim": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
        },
        "scheduler/scheduler_config.json": {
            "_class_name": "DDPMScheduler",
            "num_train_timesteps": 1000,
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "clip_sample": False,
            "steps_offset": 1,
            "prediction_type": "epsilon",
        },
    }
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content), encoding="utf-8")
