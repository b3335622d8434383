"""The autoencoder of the miniature Stable Diffusion."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from partcraft_lit.core.images import to_unit
from partcraft_lit.world.pretrain.loop import Log, LoopSettings, train_loop
from partcraft_lit.world.zoo.scenes import PretrainingScenes

#: Weight of the KL divergence, summed over latents, against the squared error, summed over pixels and channels. As in
#: Stable Diffusion it only keeps the latents from drifting; per latent it would crush them.
KL_WEIGHT = 1e-5


def build_autoencoder() -> AutoencoderKL:
    """Downsampling 4, eight latent channels, no attention in the middle."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )


def train_autoencoder(scenes: PretrainingScenes, settings: LoopSettings, folder: Path, log: Log) -> AutoencoderKL:
    """Trains it on renders (mean squared error and a trace of KL) and sets its scaling factor to unit variance."""
    torch.manual_seed(scenes.seed)
    model = build_autoencoder()
    device = torch.device(settings.device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        first = step * settings.batch_size
        drawing, _ = scenes.batch(range(first, first + settings.batch_size))
        pixels = to_unit(drawing.images).to(device)
        posterior = model.encode(pixels).latent_dist
        generator = torch.Generator(device=device).manual_seed(step)
        noise = torch.randn(posterior.mean.shape, generator=generator, device=device)
        decoded = model.decode(posterior.mean + posterior.std * noise).sample
        error = F.mse_loss(decoded.float(), pixels)
        kl = posterior.kl().mean()
        total = error * pixels[0].numel() + KL_WEIGHT * kl
        return total / pixels[0].numel(), {
            "psnr": float(-10 * torch.log10(error.detach() / 4)),
            "kl": float(kl.detach()),
        }

    averaged = train_loop(model, loss, settings, folder / "autoencoder.pt", log)
    assert isinstance(averaged, AutoencoderKL)
    averaged.register_to_config(scaling_factor=_scaling_factor(averaged, scenes, device))
    return averaged


@torch.no_grad()
def _scaling_factor(model: AutoencoderKL, scenes: PretrainingScenes, device: torch.device) -> float:
    """One over the standard deviation of the latents, as Stable Diffusion's 0.18215."""
    drawing, _ = scenes.batch(range(10**9, 10**9 + 256))
    latents = model.encode(to_unit(drawing.images).to(device)).latent_dist.mean
    return round(float(1 / latents.std()), 5)
