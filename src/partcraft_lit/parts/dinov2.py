"""DINOv2 patch features, through transformers."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import Dinov2Model

from partcraft_lit.core.errors import UserError, did_you_mean
from partcraft_lit.core.images import clamp_aspect, resize, short_side_size

#: Models without registers: those with registers match parts across images worse.
MODELS = {
    "dinov2_small": "facebook/dinov2-small",
    "dinov2_base": "facebook/dinov2-base",
    "dinov2_large": "facebook/dinov2-large",
    "dinov2_giant": "facebook/dinov2-giant",
}
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class DinoV2Features:
    """Hidden states of a frozen DINOv2, one vector per 14-pixel patch.

    The whole image is seen: sides are rounded to multiples of the patch instead of a square being cut out, and position
    embeddings are interpolated. Only images of more than 3:1 are cropped at the centre.

    Args:
        model: ``dinov2_small``, ``_base``, ``_large``, ``_giant``, a hub id, or a folder with a saved ``Dinov2Model``.
        size: shorter side in pixels; 224 gives 16 cells.
        layer: which block's output, counted like a list index; -1 is the last.
        final_norm: apply the model's last LayerNorm (PartCraft did not).
        batch_size: images per forward pass.
        device: where it runs; features come back on the CPU.

    Raises:
        UserError: if the weights cannot be had, are no DINOv2, or ``layer`` does not exist.

    Source: partcraft's ``dino.py``, which resizes to 256 and cuts the centre 224; here nothing is cut off.
    """

    def __init__(
        self,
        model: str = "dinov2_base",
        size: int = 224,
        layer: int = -1,
        final_norm: bool = False,
        batch_size: int = 16,
        device: str | torch.device = "cpu",
    ) -> None:
        self.network = _load(model).requires_grad_(False).eval().to(device)
        self.patch = _patch_size(self.network)
        depth = len(self.network.encoder.layer)
        if not -depth <= layer < depth:
            raise UserError(f"Layer {layer} of the patch features does not exist: {model} has blocks 0...{depth - 1}.")
        if size < self.patch:
            raise UserError(f"Patch features at size={size} would see less than one patch of {self.patch} pixels.")
        self.cells = round(size / self.patch)
        self.layer = layer % depth
        self.final_norm = final_norm
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.id = model if model in MODELS else Path(model).name
        self.dim: int = self.network.config.hidden_size
        self.hash = self._fingerprint()

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Tensor]:
        """uint8 (3, height, width) images of any sizes -> one float32 (grid height, grid width, D) tensor each."""
        groups: dict[tuple[int, int], list[int]] = defaultdict(list)
        cropped = [clamp_aspect(image) for image in images]
        for index, image in enumerate(cropped):
            groups[short_side_size(image.shape[1], image.shape[2], self.cells)].append(index)
        grids: dict[int, Tensor] = {}
        for shape, members in groups.items():
            for start in range(0, len(members), self.batch_size):
                chunk = members[start : start + self.batch_size]
                pixel_values = torch.stack([self._prepare(cropped[index], shape) for index in chunk])
                grids.update(zip(chunk, self._forward(pixel_values, shape), strict=True))
        return [grids[index] for index in range(len(images))]

    def _prepare(self, image: Tensor, shape: tuple[int, int]) -> Tensor:
        """uint8 (3, h, w) -> normalised (3, grid height * patch, grid width * patch)."""
        size = (shape[0] * self.patch, shape[1] * self.patch)
        unit = resize(image.to(self.device).float() / 255, size, mode="bicubic").clamp(0, 1)
        mean, std = (torch.tensor(values, device=self.device)[:, None, None] for values in (_MEAN, _STD))
        return (unit - mean) / std

    def _forward(self, pixel_values: Tensor, shape: tuple[int, int]) -> Tensor:
        """(B, 3, H, W) -> (B, grid height, grid width, D) on the CPU. Stops at ``layer``."""
        hidden = self.network.embeddings(pixel_values)
        for block in self.network.encoder.layer[: self.layer + 1]:
            hidden = block(hidden)
        if self.final_norm:
            hidden = self.network.layernorm(hidden)
        return hidden[:, 1:].unflatten(1, shape).float().cpu()  # token 0 is CLS

    def _fingerprint(self) -> str:
        """Of weights and preparation: equal for a hub id and a folder with the same weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        settings = {"cells": self.cells, "layer": self.layer, "final_norm": self.final_norm, "preparation": 1}
        digest.update(json.dumps(settings, sort_keys=True).encode())
        return digest.hexdigest()


def _load(model: str) -> Dinov2Model:
    source = _locate(model)
    try:
        network, info = Dinov2Model.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(_missing(model, source, str(error).strip().splitlines()[0])) from error
    missing = sorted(set(info["missing_keys"]) - {"embeddings.mask_token"})
    if missing or info["mismatched_keys"]:
        raise UserError(
            f"The weights of {model!r} ({source}) do not fit a DINOv2: {len(missing)} tensors are missing, for example "
            f"{(missing or list(info['mismatched_keys']))[:2]}. Give a folder that Dinov2Model.save_pretrained wrote."
        )
    return network


def _locate(model: str) -> str:
    """Hub id or folder for what the user wrote; rejects a folder that holds something else before it is loaded."""
    if model in MODELS:
        return MODELS[model]
    folder = Path(model).expanduser()
    if folder.is_dir():
        _check_folder(folder)
        return str(folder)
    looks_like_hub_id = model.count("/") == 1 and not model.startswith((".", "/", "~"))
    if not looks_like_hub_id:
        raise UserError(
            f"{_key(model)}={model}: this is neither a known model nor a folder. {did_you_mean(model, MODELS)} "
            "Or give the path of a folder with config.json and model.safetensors."
        )
    return model


def _check_folder(folder: Path) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder} has no config.json, so it is no saved DINOv2. Give the folder that holds one.")
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{config} cannot be read as JSON: {error}. Download the folder again.") from error
    if kind != "dinov2":
        raise UserError(f"{folder} holds a model of type {kind!r}, but 'dinov2' (without registers) is required.")


def _missing(model: str, source: str, reason: str) -> str:
    return (
        f"The weights of {model!r} ({source}) could not be loaded: {reason} "
        f"With a network, unset HF_HUB_OFFLINE and run again; without one, run 'hf download {source}' on a machine "
        f"that has one and copy the folder here, then give its path: {_key(model)}=PATH. "
        "parts.features=efficientnet_lite0 needs no download."
    )


def _key(model: str) -> str:
    """Where the configuration has the model; of one without a name of its own, for instance."""
    return f"features.{model if model in MODELS else 'dinov2_base'}.model"


def _patch_size(network: Dinov2Model) -> int:
    size = network.config.patch_size
    return int(size if isinstance(size, int) else size[0])
