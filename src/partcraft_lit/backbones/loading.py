"""Loads Stable Diffusion components from a folder, a single file or the hub."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from partcraft_lit.backbones.components import (
    LEAST_TOKENS,
    SD,
    SDXL,
    Components,
    Layout,
    check_complete,
    check_tokenizers,
    explain_load_errors,
    how_to_get,
    in_float32,
)
from partcraft_lit.backbones.single_file import load_single_file, load_tokenizer
from partcraft_lit.core.errors import UserError, did_you_mean

logger = logging.getLogger(__name__)


def load_components(
    source: str | Path,
    layout: Layout = SD,
    *,
    revision: str | None = None,
    variant: str | None = None,
    config: str | Path | None = None,
    mirrors: Sequence[str] = (),
    vae: str | Path | None = None,
) -> Components:
    """Loads from a local folder, a single ``.safetensors`` file, or else a hub id.

    Args:
        source: folder, file or hub id.
        layout: expected kind of model.
        revision: branch, tag or commit of a hub id.
        variant: of the weights' files.
        config: for a single file: folder with settings and tokenizers.
        mirrors: hub ids of the same model, tried in turn if the source is a hub id that cannot be loaded; not with a
            revision. "owner/name@revision" pins a mirror.
        vae: folder or hub id of another VAE.

    Raises:
        UserError: if the source is missing, incomplete, of another kind, or not available offline.
    """
    path = Path(source).expanduser()
    if revision and path.exists():
        logger.warning(
            "backbone.revision=%s is of hub ids alone, and %s is on this machine: backbone.sha256 pins its weights.",
            revision,
            path,
        )
    if path.is_file():
        components = load_single_file(path, layout, None if config is None else Path(config).expanduser())
        return components if vae is None else _with_vae(components, vae)
    if path.is_dir():
        _check_folder(path, layout)
        return _load_pretrained(str(path), layout, None, variant, vae)
    if _looks_like_a_path(source):
        raise UserError(_missing_path_message(path))
    # A revision is a commit of one repository, so mirrors do not apply.
    others = [] if revision else [_pinned(mirror, None) for mirror in mirrors]
    return _load_from_hub([_pinned(str(source), revision), *others], layout, variant, vae)


def packaged_weights(name: str) -> Path:
    """Folder of weights shipped with the package.

    Raises:
        UserError: if they are missing.
    """
    folder = Path(str(resources.files("partcraft_lit"))) / "weights" / name
    if not any((folder / part).is_dir() for part in ("unet", "transformer")):
        stage = {"mini_dit": " stage=dit", "mini_plain": " grounding_weight=0"}.get(name, "")
        raise UserError(
            f"The packaged weights of backbone {name!r} are missing: {folder}. Install the package again, make them "
            f"with `partcraft pretrain{stage}`, or give a folder in diffusers' format with backbone.path=FOLDER."
        )
    return folder


def tokenizers_without_networks(
    source: str | Path, *, config: str | Path | None = None, revision: str | None = None
) -> list[Any]:
    """Tokenizers alone, to check words before gigabytes are read; arguments as in ``load_components``.

    Returns:
        One or two; none where they cannot be loaded, which loading the model will explain.

    Raises:
        UserError: if a single file has no tokenizer anywhere, or one cannot be read.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return [load_tokenizer(path, None if config is None else Path(config).expanduser())]
    if path.is_dir():
        found = [_tokenizer(str(path), name, None) for name in SDXL.tokenizers if (path / name).is_dir()]
    else:
        location, commit = _pinned(str(source), revision)
        found = [] if _looks_like_a_path(source) else [_tokenizer(location, SD.tokenizers[0], commit)]
    return [tokenizer for tokenizer in found if tokenizer is not None and len(tokenizer) >= LEAST_TOKENS]


def _tokenizer(location: str, subfolder: str, revision: str | None) -> Any | None:
    """Of a folder or a hub id; None where there is none."""
    from transformers import CLIPTokenizer

    try:
        with explain_load_errors(location, revision):
            return CLIPTokenizer.from_pretrained(location, subfolder=subfolder, revision=revision)
    except UserError:
        return None


def _load_from_hub(
    places: Sequence[tuple[str, str | None]], layout: Layout, variant: str | None, vae: str | Path | None
) -> Components:
    """Loads the first available hub id, or says why none is."""
    failures: list[UserError] = []
    for number, (location, revision) in enumerate(places):
        try:
            components = _load_pretrained(location, layout, revision, variant, vae)
        except UserError as error:
            failures.append(error)
            continue
        if number:
            logger.warning("The model %s could not be had; its mirror %s is used instead.", places[0][0], location)
        return components
    if len(failures) == 1:
        raise failures[0]
    reasons = " ".join(f"({number}) {_short(error)}" for number, error in enumerate(failures, start=1))
    raise UserError(f"Neither the model nor a mirror of it could be had. {reasons} {how_to_get(places[0][0])}")


def _load_pretrained(
    location: str, layout: Layout, revision: str | None, variant: str | None, vae: str | Path | None = None
) -> Components:
    """A folder or a hub id; small components first, so that a wrong id fails before gigabytes are downloaded."""
    import transformers
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

    chosen: dict[str, Any] = {"revision": revision}
    with explain_load_errors(location, revision, variant):
        scheduler = DDPMScheduler.from_pretrained(location, subfolder="scheduler", **chosen)
        tokenizers = [
            transformers.CLIPTokenizer.from_pretrained(location, subfolder=part, **chosen) for part in layout.tokenizers
        ]
        force_zeros_for_empty_prompt = (
            _force_zeros_for_empty_prompt(location, revision) if len(tokenizers) > 1 else False
        )
        text_encoders = [
            getattr(transformers, kind).from_pretrained(location, subfolder=part, variant=variant, **chosen)
            for part, kind in layout.text_encoders.items()
        ]
        if vae is None:
            autoencoder = AutoencoderKL.from_pretrained(location, subfolder="vae", variant=variant, **chosen)
        else:
            autoencoder = load_vae(vae)
        unet = UNet2DConditionModel.from_pretrained(location, subfolder="unet", variant=variant, **chosen)
    components = in_float32(unet, autoencoder, text_encoders, tokenizers, scheduler, force_zeros_for_empty_prompt)
    return check_tokenizers(location, components)


def load_vae(source: str | Path) -> Any:
    """A VAE in diffusers' format: a folder or a hub id with the VAE itself, or with a whole model around it.

    Raises:
        UserError: if it is not there or cannot be read.
    """
    from diffusers import AutoencoderKL

    path = Path(source).expanduser()
    if not path.is_dir() and _looks_like_a_path(source):
        raise UserError(f"backbone.vae={source}: {_missing_path_message(path)}")
    location = str(path) if path.is_dir() else str(source)
    inside = "vae" if (path / "vae" / "config.json").is_file() else None
    with explain_load_errors(location):
        return AutoencoderKL.from_pretrained(location, subfolder=inside)


def _with_vae(components: Components, vae: str | Path) -> Components:
    return replace(components, vae=load_vae(vae).float())


def _force_zeros_for_empty_prompt(location: str, revision: str | None) -> bool:
    """As in model_index.json; True, as for the published base model, in a folder without one."""
    from diffusers import DiffusionPipeline

    if Path(location).is_dir() and not (Path(location) / DiffusionPipeline.config_name).is_file():
        return True
    index = DiffusionPipeline.load_config(location, revision=revision)
    return bool(index.get("force_zeros_for_empty_prompt", True))


def _pinned(place: str, revision: str | None) -> tuple[str, str | None]:
    """ "owner/name@revision" -> its two halves."""
    name, at, own = place.partition("@")
    return name, own if at else revision


def _looks_like_a_path(source: str | Path) -> bool:
    """A hub id is ``name`` or ``owner/name``; all else is a path."""
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


def _check_folder(folder: Path, layout: Layout) -> None:
    """Checks that all components are there before weights are read."""
    has_two = (folder / "text_encoder_2").is_dir()
    if has_two != ("text_encoder_2" in layout.text_encoders) and (folder / "text_encoder").is_dir():
        found, other = ("two text encoders", SDXL) if has_two else ("one text encoder", SD)
        raise UserError(
            f"{folder} holds a model with {found} ({other.title}); this backbone takes {layout.title}. Use "
            f"backbone={other.backbone}."
        )
    check_complete(folder, layout.folders, "model", layout.example)


def _short(error: UserError) -> str:
    return str(error).partition(" To get it:")[0]
