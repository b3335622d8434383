"""A small network that reads parts and codes off clean latents, for a loss on what the model is about to draw.

It is fitted to the latents of real images before training and then frozen. A network that was trained along, on what
the model predicts, could agree with it on signs that no image shows.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from partcraft_lit.core.labels import resize_labels
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.losses.part_prediction import part_prediction_loss

_WIDTH = 32
_GROUPS = 4
_RATE = 3e-3
#: Largest standard deviation of the noise that it learns to read through.
_NOISE = 0.5


class LatentPartPredictor(nn.Module):
    """Part of each latent, and the code of each part.

    Args:
        channels: of the latents.
        num_parts: foreground parts (M).
        num_codes: largest number of codes of a part (K).
        seed: of the weights.
    """

    def __init__(self, channels: int, num_parts: int, num_codes: int, seed: int = 0) -> None:
        super().__init__()
        self.num_parts, self.num_codes = num_parts, num_codes
        widths = [channels, _WIDTH, _WIDTH, _WIDTH]
        self.convolutions = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(_GROUPS, width) for width in widths[1:])
        self.parts = nn.Conv2d(_WIDTH, num_parts + 1, 1)
        self.codes = nn.Parameter(torch.empty(num_parts + 1, num_codes, _WIDTH))
        generator = torch_generator(seed, "latent predictor")
        for layer in (*self.convolutions, self.parts):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.codes, std=_WIDTH**-0.5, generator=generator)

    def forward(self, latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits.

        Args:
            latents: (B, C, h, w).
            labels: (B, h, w) part of each latent, over which its features are averaged; any other value is no part.

        Returns:
            (B, M + 1, h, w) of the part at each place, and (B, M + 1, K) of the code of each part.
        """
        features = latents
        for convolution, norm in zip(self.convolutions, self.norms):
            features = F.silu(norm(convolution(features)))
        parts = torch.arange(self.num_parts + 1, device=labels.device)
        masks = (labels[:, None] == parts[:, None, None]).to(features.dtype)  # (B, M + 1, h, w)
        gathered = torch.einsum("bfhw,bphw->bpf", features, masks) / masks.sum(dim=(2, 3)).clamp_min(1)[..., None]
        return self.parts(features), torch.einsum("bpf,pkf->bpk", gathered, self.codes)


def fit_latent_predictor(
    predictor: LatentPartPredictor, batches: Iterable[tuple[Tensor, Tensor, Tensor]], steps: int, seed: int
) -> None:
    """Fits to real latents, through noise and blur such as predicted latents have; freezes it at the end.

    Args:
        predictor: changed.
        batches: (latents (B, C, h, w), labels (B, s, s), codes (B, M + 1)).
        steps: number of batches, for the schedule.
        seed: of noise and blur.
    """
    optimizer = torch.optim.AdamW(predictor.parameters(), lr=_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for number, (latents, label_map, codes) in enumerate(batches):
        labels = resize_labels(label_map, latents.shape[-2:], predictor.num_parts + 1).long()
        parts, of_codes = predictor(_blurred(latents, torch_generator(seed, "blur", number)), labels)
        loss = part_prediction_loss(parts, of_codes, labels, codes).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    predictor.requires_grad_(False).eval()


def _blurred(latents: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the samples smoothed, all of them with noise of a random strength."""
    chances = torch.rand(2, len(latents), generator=generator)
    noise = torch.randn(latents.shape, generator=generator) * (_NOISE * chances[0])[:, None, None, None]
    smooth = F.avg_pool2d(latents, 3, 1, 1, count_include_pad=False)
    half = (chances[1] < 0.5).to(latents.device)[:, None, None, None]
    return torch.where(half, smooth, latents) + noise.to(latents)
