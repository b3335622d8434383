"""Text encoder and UNet of the miniature Stable Diffusion, trained together on captioned creatures."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from partcraft_lit.losses.diffusion import diffusion_loss, diffusion_target, min_snr_weight, signal_to_noise_ratio
from partcraft_lit.pretrain.autoencoder import to_unit
from partcraft_lit.pretrain.loop import Log, LoopSettings, train_loop
from partcraft_lit.randomness import torch_generator
from partcraft_lit.zoo.scenes import PretrainingScenes

#: Share of captions left empty, for classifier-free guidance.
EMPTY_CAPTIONS = 0.1
#: Clip of the min-SNR weight (Hang et al., arXiv 2303.09556).
SNR_GAMMA = 5.0
TEXT_WIDTH = 128


def build_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule, with v-prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
    )


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two causal layers of width 128."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=77,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(latent_channels: int) -> UNet2DConditionModel:
    """Two levels, 16x16 and 8x8; cross-attention in three layers at 16x16 and one in the middle at 8x8."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,  # diffusers reads it as the number of heads
        norm_num_groups=16,
    )


class TextAndDenoiser(nn.Module):
    """What trains together."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """(B, C, 16, 16), (B,), (B, 77) -> (B, C, 16, 16)."""
        hidden = self.text_encoder(input_ids).last_hidden_state
        return self.unet(noisy_latents, timesteps, encoder_hidden_states=hidden).sample


def train_denoiser(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    scenes: PretrainingScenes,
    settings: LoopSettings,
    folder: Path,
    log: Log,
) -> TextAndDenoiser:
    """Trains on fresh renders, each seen once: v-prediction with min-SNR weights, a tenth of the captions empty."""
    torch.manual_seed(scenes.seed)
    model = TextAndDenoiser(build_text_encoder(tokenizer), build_unet(vae.config.latent_channels))
    scheduler = build_scheduler()
    device = torch.device(settings.device)
    vae.to(device).eval().requires_grad_(False)
    alphas_cumprod = scheduler.alphas_cumprod.to(device)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = settings.batch_size
        drawing, captions = scenes.batch(range(step * batch, (step + 1) * batch))
        generator = torch_generator(scenes.seed, "denoiser", step)
        empty = torch.rand(batch, generator=generator) < EMPTY_CAPTIONS
        captions = ["" if blank else text for text, blank in zip(captions, empty.tolist(), strict=True)]
        ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids.to(device)
        latents = _encode(vae, to_unit(drawing.images).to(device))
        noise = torch.randn(latents.shape, generator=generator).to(device)
        # one timestep from each of ``batch`` equal slices: less noise in the gradient at no cost
        slices = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timesteps = (slices * len(alphas_cumprod)).long().to(device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        predicted = model(noisy, timesteps, ids).float()
        target = diffusion_target(latents, noise, timesteps, alphas_cumprod, "v_prediction")
        weight = min_snr_weight(signal_to_noise_ratio(alphas_cumprod, timesteps), SNR_GAMMA, "v_prediction")
        return diffusion_loss(predicted, target, weight).mean(), {}

    averaged = train_loop(model, loss, settings, folder / "denoiser.pt", log)
    assert isinstance(averaged, TextAndDenoiser)
    return averaged


@torch.no_grad()
def _encode(vae: AutoencoderKL, pixel_values: Tensor) -> Tensor:
    with torch.autocast(pixel_values.device.type, torch.bfloat16):
        mean = vae.encode(pixel_values).latent_dist.mean
    return mean.float() * vae.config.scaling_factor
