"""Single-file ``.safetensors`` checkpoints in the original format, loaded offline."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from partcraft_lit.backbones.components import (
    SDXL,
    TOKENIZER_FILES,
    Components,
    Layout,
    check_tokenizers,
    explain_load_errors,
    in_float32,
)
from partcraft_lit.backbones.model_configs import SD1, SDXL_BASE, write_configs
from partcraft_lit.core.errors import UserError

#: Hub repositories whose tokenizer is that of every SD 1.x, 2.x and SDXL model, with the sub-folder.
_TOKENIZER_REPOSITORIES = (
    ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
    ("openai/clip-vit-large-patch14", ""),
)
_UNET = "model.diffusion_model."
#: A weight whose width is that of the text, by kind of model; the other kind does not have it.
_TEXT_KEYS = {
    "SD 1.x and 2.x": f"{_UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
    "SDXL": f"{_UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
}
#: Width of text, channels of latents and first width of the UNet that the published settings are for.
_SHAPES = {"SD 1.x and 2.x": (768, 4, 320), "SDXL": (2048, 4, 320)}


def load_single_file(path: Path, layout: Layout, config: Path | None) -> Components:
    """Reads a checkpoint.

    Args:
        path: the file.
        layout: what kind of model it has to be.
        config: folder with settings and tokenizers in diffusers' format, for models that differ from the published
            SD 1.x or SDXL; or with tokenizers only.

    Raises:
        UserError: if it is of another format or kind, incomplete, or there is no tokenizer.
    """
    if path.suffix != ".safetensors":
        pipeline = "StableDiffusionXLPipeline" if layout is SDXL else "StableDiffusionPipeline"
        raise UserError(
            f"{path} is not a .safetensors file; other checkpoints can run code when they are read. Convert it, for "
            f"example {pipeline}.from_single_file({path.name!r}).save_pretrained('FOLDER')."
        )
    if config is not None and not config.is_dir():
        raise UserError(
            f"backbone.config={config} is not a folder; give one with a model's settings in diffusers' format."
        )
    tokenizers = _tokenizers(path, layout, config)
    checkpoint = _read_checkpoint(path)
    if config is not None and (config / "unet" / "config.json").is_file():
        return _convert(path, layout, checkpoint, config, tokenizers)
    _check_is_published(path, layout, checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        write_configs(SDXL_BASE if layout is SDXL else SD1, Path(folder))
        return _convert(path, layout, checkpoint, Path(folder), tokenizers)


def _tokenizers(path: Path, layout: Layout, config: Path | None) -> list[Any]:
    """The tokenizers; a missing second one is the first with SDXL's padding token."""
    first = load_tokenizer(path, config)
    if len(layout.tokenizers) == 1:
        return [first]
    folder = (config or path.parent) / layout.tokenizers[1]
    if any((folder / file).is_file() for file in TOKENIZER_FILES):
        from transformers import CLIPTokenizer

        with explain_load_errors(str(folder)):
            return [first, CLIPTokenizer.from_pretrained(str(folder))]
    second = copy.deepcopy(first)
    second.pad_token = "!"
    return [first, second]


def load_tokenizer(path: Path, config: Path | None) -> Any:
    """Tokenizer from the config folder, from beside the checkpoint, or from the hub's cache.

    Raises:
        UserError: if there is none, or it cannot be read.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    from transformers import CLIPTokenizer

    folders = [path.parent / "tokenizer", path.parent]
    if config is not None:
        folders = [config / "tokenizer", config, *folders]
    for folder in folders:
        if any((folder / file).is_file() for file in TOKENIZER_FILES):
            with explain_load_errors(str(folder)):
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
        raise UserError(f"{path} is not a readable safetensors file ({error}). Was the download cut short?") from error


def _check_is_published(path: Path, layout: Layout, checkpoint: dict[str, Any]) -> None:
    """Raises unless the published configs match the checkpoint."""
    key = _TEXT_KEYS[layout.title]
    first = checkpoint.get(f"{_UNET}input_blocks.0.0.weight")
    if first is None or not any(other in checkpoint for other in _TEXT_KEYS.values()):
        raise UserError(
            f"{path} is not a Stable Diffusion checkpoint in the original format: {_UNET}input_blocks.0.0.weight or "
            f"{key} is not in it."
        )
    is_xl = _TEXT_KEYS["SD 1.x and 2.x"] not in checkpoint
    if is_xl != (layout is SDXL):
        raise UserError(
            f"{path} is a checkpoint of {'SDXL' if is_xl else 'SD 1.x or 2.x'}; this backbone takes {layout.title}. "
            f"Use backbone={'sdxl' if is_xl else 'sd15'}."
        )
    found, wanted = (checkpoint[key].shape[1], first.shape[1], first.shape[0]), _SHAPES[layout.title]
    if found != wanted:
        raise UserError(
            f"{path} is not a plain {'SDXL' if is_xl else 'SD 1.x'} checkpoint (text width {found[0]}, latent channels "
            f"{found[1]}, first width {found[2]}; wanted {wanted[0]}, {wanted[1]} and {wanted[2]}). For SD 2.x and "
            f"others, also give backbone.config=FOLDER with the model's settings in diffusers' format: the file does "
            f"not say how it predicts."
        )


def _convert(path: Path, layout: Layout, checkpoint: dict[str, Any], config: Path, tokenizers: list[Any]) -> Components:
    import transformers
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from diffusers.loaders.single_file_utils import SingleFileComponentError, create_diffusers_clip_model_from_ldm

    settings = {"config": str(config), "local_files_only": True}
    try:
        networks = {
            "unet": UNet2DConditionModel.from_single_file(dict(checkpoint), subfolder="unet", **settings),
            "vae": AutoencoderKL.from_single_file(dict(checkpoint), subfolder="vae", **settings),
        }
        for part, kind in layout.text_encoders.items():
            networks[part] = create_diffusers_clip_model_from_ldm(
                getattr(transformers, kind), checkpoint=dict(checkpoint), subfolder=part, **settings
            )
        scheduler = DDPMScheduler.from_pretrained(config, subfolder="scheduler", local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SingleFileComponentError) as error:
        raise UserError(f"{path} does not fit the settings in {config}: {error}") from error
    _check_complete(path, networks)
    encoders = [networks[part] for part in layout.text_encoders]
    components = in_float32(networks["unet"], networks["vae"], encoders, tokenizers, scheduler, layout is SDXL)
    return check_tokenizers(str(path), components)


def _check_complete(path: Path, networks: dict[str, Any]) -> None:
    """Raises for missing weights, which the converter leaves on the meta device."""
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
