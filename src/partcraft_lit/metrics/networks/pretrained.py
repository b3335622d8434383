"""Pretrained transformers networks for metrics, from a folder or the hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from partcraft_lit.core.errors import UserError, did_you_mean


def locate(source: str, known: Mapping[str, str], what: str) -> str:
    """Hub id or folder for what the user wrote.

    Args:
        source: a name in ``known``, a hub id, or a path.
        known: short names and their hub ids.
        what: what is looked for, for messages: "a CLIP model".

    Raises:
        UserError: if it is neither.
    """
    if source in known:
        return known[source]
    folder = Path(source).expanduser()
    if folder.is_dir():
        return str(folder)
    if source.count("/") == 1 and not source.startswith((".", "/", "~")):
        return source
    raise UserError(
        f"{source!r} is not a folder, a hub id or a known name of {what}. {did_you_mean(source, known)} Or give the "
        "path of a folder with config.json and model.safetensors."
    )


def model_type(location: str, what: str) -> str:
    """``model_type`` of a folder or hub id, before any weights are read.

    Raises:
        UserError: if there is no configuration to read.
    """
    if not Path(location).is_dir():
        from transformers import AutoConfig

        try:
            return str(AutoConfig.from_pretrained(location).model_type)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(cannot_load(location, what, error)) from error
    path = Path(location) / "config.json"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} does not say what the folder holds ({type(error).__name__}): it is no saved {what.split()[-1]}. "
            f"Give a folder with {what} that save_pretrained wrote."
        ) from error


def load_network(kind: Any, location: str, what: str, dtype: torch.dtype | str = torch.float32, **kwargs: Any) -> Any:
    """``kind.from_pretrained``, refusing files that leave weights at random.

    Args:
        kind: a model class of transformers.
        location: folder or hub id.
        what: for messages.
        dtype: of the weights; "auto" is as they are stored.
        **kwargs: for ``from_pretrained``.

    Raises:
        UserError: if the weights cannot be had or do not fit.
    """
    try:
        network, info = kind.from_pretrained(location, output_loading_info=True, dtype=dtype, **kwargs)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(cannot_load(location, what, error)) from error
    missing = sorted(name for name in info["missing_keys"] if not name.endswith("mask_token"))
    if missing or info["mismatched_keys"]:
        raise UserError(
            f"The weights of {location!r} do not fit {what}: {len(missing)} tensors are missing, for example "
            f"{(missing or list(info['mismatched_keys']))[:2]}."
        )
    return network


def cannot_load(location: str, what: str, error: Exception) -> str:
    """Why weights could not be had, and what to do, in words."""
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if Path(location).is_dir():
        return f"{location} could not be read as {what}: {reason} Copy or download the folder again."
    return (
        f"The weights of {location!r} ({what}) could not be loaded: {reason} With a network, unset HF_HUB_OFFLINE and "
        f"run again; without one, run 'hf download {location}' on a machine that has one, copy the folder here and "
        "give its path."
    )
