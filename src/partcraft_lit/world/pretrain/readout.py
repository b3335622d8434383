"""Reads the looks of parts from inside the denoiser while it is trained.

What words decide is a small part of the denoising loss: a wrong texture costs a twentieth of what a wrong colour does.
So while the base model is trained, small heads read from the features of one layer which part, colour and texture
each place of the clean image has, and their cross-entropy is added to the loss. That a denoiser learns faster when
its features are tied to a known description of the clean image is the observation of REPA (arXiv 2410.06940); there
the description is that of a pretrained network, here it is the truth. The heads are thrown away afterwards.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F

from partcraft_lit.world.zoo.looks import COLORS, FAMILIES, NUM_PARTS, NUM_SHAPES, TEXTURES


class LookReadout(nn.Module):
    """Heads on the features of one layer of the denoiser.

    Args:
        channels: width of the layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classes = (1 + len(FAMILIES) * NUM_PARTS * NUM_SHAPES, len(COLORS), len(TEXTURES))
        self.heads = nn.Sequential(
            nn.GroupNorm(16, channels), nn.Conv2d(channels, 128, 1), nn.SiLU(), nn.Conv2d(128, sum(self.classes), 1)
        )

    def forward(
        self, features: Tensor, label_maps: Tensor, looks: Tensor, families: Tensor, told: Tensor
    ) -> dict[str, Tensor]:
        """Cross-entropies of each image. In all but ``part`` every part counts the same, however small it is.

        Args:
            features: (B, channels, h, w).
            label_maps: (B, h, w), 0 background, 1 + part elsewhere; parts of a second creature follow those of the
                first.
            looks: (B, 2 * parts, 3) shape, colour, texture.
            families: (B, 2) place of each creature's family among all families.
            told: (B, 2 * parts) bool, whether the caption says the shape of the part: no other is asked for.

        Returns:
            (B,) by name: ``part`` (which part, and of which shape; background is a class), ``shape`` (which of the
            part's shapes, where the part is known), ``color``, ``texture``. 0 where there is nothing to ask.
        """
        batch = len(looks)
        places = self.heads(features.float()).movedim(1, -1).flatten(0, 2).split(self.classes, dim=1)
        labels = label_maps.flatten().long()
        inside = labels > 0
        part = (labels - 1).clamp_min(0)
        row = torch.arange(batch, device=looks.device).repeat_interleave(label_maps[0].numel())
        shape, color, texture = looks[row, part].unbind(dim=1)
        family = families[row, part // NUM_PARTS]
        kind = (family * NUM_PARTS + part % NUM_PARTS) * NUM_SHAPES + shape + 1
        shapes = (kind - shape)[:, None] + torch.arange(NUM_SHAPES, device=kind.device)  # of the part that is there
        shown = F.one_hot(labels.view(batch, -1), 1 + looks.shape[1])[..., 1:].float()  # (B, h * w, 2 * parts)

        def by_part(logits: Tensor, answer: Tensor, asked: Tensor) -> Tensor:
            values = F.cross_entropy(logits, answer, reduction="none").view(batch, -1)
            area = shown.sum(dim=1)
            means = torch.einsum("bn,bnp->bp", values, shown) / area.clamp_min(1)
            counts = (asked & (area > 0)).float()
            return (means * counts).sum(dim=1) / counts.sum(dim=1).clamp_min(1)

        everything = torch.ones_like(told)
        kinds = F.cross_entropy(places[0], torch.where(inside, kind, 0), reduction="none")
        return {
            "part": kinds.view(batch, -1).mean(dim=1),
            "shape": by_part(places[0].gather(1, shapes), shape, told),
            "color": by_part(places[1], color, everything),
            "texture": by_part(places[2], texture, everything),
        }


class Features:
    """Keeps the output of the layer after which the denoiser only draws: the first attention of its last block."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        layer = unet.up_blocks[-1].attentions[0]
        self.channels = int(unet.config.block_out_channels[0])
        self._kept: Tensor | None = None
        self._handle = layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        features = getattr(output, "sample", None)
        features = features if features is not None else output[0]  # type: ignore[index]
        assert isinstance(features, Tensor)
        self._kept = features

    def take(self) -> Tensor:
        """(B, channels, h, w) of the last forward pass."""
        if self._kept is None:
            raise RuntimeError("The denoiser has not run since the features were taken last.")
        kept, self._kept = self._kept, None
        return kept

    def remove(self) -> None:
        """Leaves the denoiser as it was."""
        self._handle.remove()
