"""DINO and DINOv2 image features, which separate subjects of one class better than CLIP's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from partcraft_lit.core.errors import UserError
from partcraft_lit.metrics.features import View, checked_images
from partcraft_lit.metrics.networks.pretrained import load_network, locate, model_type

#: Short names of hub ids. Papers report ``dino_small16`` (ViT-S/16); numbers of the two families do not compare.
MODELS = {
    "dino_small16": "facebook/dino-vits16",
    "dino_base16": "facebook/dino-vitb16",
    "dinov2_small": "facebook/dinov2-small",
    "dinov2_base": "facebook/dinov2-base",
    "dinov2_large": "facebook/dinov2-large",
}
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
_WHAT = "a DINO model"


class DinoFeatures:
    """The class token behind the last norm: what DINO and DINOv2 describe a whole image by.

    Args:
        model: a ``transformers.ViTModel`` (DINO) or ``Dinov2Model``.
        id: for the keys of metrics.
        batch_size: images per forward pass.
        device: where it runs.
        side: of the square that the network sees; the short side is resized to 8/7 of it, 256 for 224.

    Source: Caron et al. (arXiv 2104.14294): short side to 256 bicubic, centre 224 cut out, ImageNet's colours.
    """

    def __init__(
        self, model: Any, id: str, batch_size: int = 32, device: str | torch.device = "cpu", side: int = 224
    ) -> None:
        self.model = model.requires_grad_(False).eval().to(device)
        self.id = id
        self.batch_size = batch_size
        self.device = torch.device(device)
        self.dim = int(model.config.hidden_size)
        self._view = View(round(side * 8 / 7), side, _MEAN, _STD)
        # DINOv2 was saved with the position table of its last training stage, 518 pixels; here it sees 224
        self._arguments = {"interpolate_pos_encoding": True} if model.config.model_type == "vit" else {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) -> (B, D) float32."""
        pieces = checked_images(images).split(self.batch_size)
        seen = (self._view(piece.to(self.device)) for piece in pieces)
        outputs = [self.model(pixel_values=pixels, **self._arguments) for pixels in seen]
        return torch.cat([output.last_hidden_state[:, 0] for output in outputs])


def load_dino(source: str, batch_size: int = 32, device: str | torch.device = "cpu") -> DinoFeatures:
    """A DINO or DINOv2 model.

    Args:
        source: ``dino_small16``, ``dino_base16``, ``dinov2_small``, ``_base``, ``_large``, a hub id, or a folder.
        batch_size: images per forward pass.
        device: where it runs.

    Raises:
        UserError: if it is not there, or something else.
    """
    from transformers import Dinov2Model, ViTModel

    location = locate(source, MODELS, _WHAT)
    kind = model_type(location, _WHAT)
    if kind == "vit":
        model = load_network(ViTModel, location, _WHAT, add_pooling_layer=False)
    elif kind == "dinov2":
        model = load_network(Dinov2Model, location, _WHAT)
    else:
        raise UserError(f"{location} holds a model of type {kind!r}, but 'vit' (DINO) or 'dinov2' is wanted.")
    return DinoFeatures(model, Path(location).name, batch_size, device)
