"""Text encoder and UNet of the miniature Stable Diffusion, trained together on captioned creatures."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from partcraft_lit.backbones.attention import AttentionCapture, cross_attention_sides
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.losses.diffusion import diffusion_target
from partcraft_lit.world.pretrain.examples import ExampleSource, noise_like
from partcraft_lit.world.pretrain.loop import Log, LoopSettings, train_loop
from partcraft_lit.world.pretrain.readout import Features, LookReadout
from partcraft_lit.world.zoo.looks import NUM_PARTS

#: Timesteps are drawn as 1000 * u ** TILT: what a caption decides is decided where there is much noise. For the same
#: reason the velocity loss is not weighted; min-SNR weights (arXiv 2303.09556) all but silence those steps.
TILT = 0.75
#: Weights of the cross-entropies by which the looks of parts are read from the denoiser. Outlines are learnt last.
READOUT = {"part": 0.05, "shape": 0.4, "color": 0.05, "texture": 0.05}
#: Each is weighted by this power of the share of noise, 1 - alphas_cumprod: where there is little noise an outline can
#: be read off the noisy image itself, and reading it teaches nothing about captions.
NOISE_POWER = {"part": 0.0, "shape": 2.0, "color": 0.0, "texture": 0.0}
#: Weight of cells that an outline crosses.
OUTLINE = 2.0
TEXT_WIDTH = 128


def build_scheduler() -> DDPMScheduler:
    """Stable Diffusion's noise schedule with v-prediction, rescaled to zero terminal SNR.

    With a rest of the image at its last timestep, a model learns to read layout and brightness from that rest, which
    sampling does not offer.

    Source: Lin et al. (arXiv 2305.08891), sections 3.1 and 3.2.
    """
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
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
        self.readout = LookReadout(int(unet.config.block_out_channels[0]))

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """(B, C, 16, 16), (B,), (B, 77) -> (B, C, 16, 16)."""
        hidden = self.text_encoder(input_ids).last_hidden_state
        return self.unet(noisy_latents, timesteps, encoder_hidden_states=hidden).sample


def build_denoiser(tokenizer: CLIPTokenizer, latent_channels: int, seed: int) -> TextAndDenoiser:
    """Text encoder and UNet with their first weights."""
    torch.manual_seed(seed)
    return TextAndDenoiser(build_text_encoder(tokenizer), build_unet(latent_channels))


def train_denoiser(
    source: ExampleSource,
    seed: int,
    model: TextAndDenoiser,
    settings: LoopSettings,
    checkpoint: Path,
    log: Log,
    grounding_weight: float,
    polished_from: int | None = None,
) -> TextAndDenoiser:
    """Trains text encoder and UNet: v-prediction, a tenth of the captions empty.

    Args:
        source: of the examples.
        seed: of noise and timesteps.
        model: what trains, in place.
        settings: how long and how fast.
        checkpoint: file that is resumed from; the curve is beside it.
        log: where a line for people goes.
        grounding_weight: of the loss by which the words that describe a part look at that part. Their parts are known
            here, and a base that has to find this out by itself follows captions later.
        polished_from: steps of the same batch size that ``model`` was trained for, if this polishes it: cells count
            alike where there is little noise, and examples are those after these steps.
    """
    scheduler = build_scheduler()
    device = torch.device(settings.device)
    alphas_cumprod = scheduler.alphas_cumprod.to(device)
    latent_size = int(model.unet.config.sample_size)
    layers = [name for name, side in cross_attention_sides(model.unet, latent_size).items() if side == latent_size]
    capture, features = AttentionCapture(model.unet, layers), Features(model.unet)

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = settings.batch_size
        step += polished_from or 0
        generator = torch_generator(seed, "denoiser", step)
        examples = source.batch(step, batch, generator)
        latents, truth = examples.latents, examples.truth
        noise = noise_like(latents, generator)
        # one draw from each of ``batch`` equal slices: less noise in the gradient at no cost
        slices = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timesteps = (slices**TILT * len(alphas_cumprod)).long().clamp_max(len(alphas_cumprod) - 1).to(device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        with capture.armed(truth.places):
            predicted = model(noisy, timesteps, truth.input_ids).float()
        cells = truth.label_maps[:, 2::4, 2::4]  # the middle of each cell of 4 x 4 pixels
        grounding = entropy_attention_loss(capture.maps(), truth.parts, cells, 2 * NUM_PARTS).mean()
        capture.clear()
        noise_share = 1 - alphas_cumprod[timesteps]
        readout = {
            name: (value * noise_share ** NOISE_POWER[name]).mean()
            for name, value in model.readout(features.take(), cells, truth.looks, truth.families, truth.told).items()
        }
        target = diffusion_target(latents, noise, timesteps, alphas_cumprod, "v_prediction")
        weights = cell_weights(truth.label_maps, cells)
        if polished_from is not None:
            weights = noise_dependent(weights, noise_share)
        diffusion = ((predicted - target).square().mean(dim=1) * weights).mean()
        parts_of_loss = {"diffusion": diffusion, "grounding": grounding, **readout}
        numbers = {name: value.detach() for name, value in parts_of_loss.items()}
        readout_loss = sum(READOUT[name] * value for name, value in readout.items())
        return diffusion + grounding_weight * grounding + readout_loss, numbers

    averaged = train_loop(
        model, loss, settings, checkpoint, log, (model.unet.conv_in, model.unet.conv_out, model.readout)
    )
    capture.remove()
    features.remove()
    assert isinstance(averaged, TextAndDenoiser)
    return averaged


def cell_weights(label_maps: Tensor, cells: Tensor) -> Tensor:
    """Weights of the cells in the diffusion loss: small parts and outlines are a small share of an image.

    Args:
        label_maps: (B, 4 h, 4 w), 0 background, 1 + part elsewhere.
        cells: (B, h, w), the label of each cell.

    Returns:
        (B, h, w), mean 1 in each image: one over the square root of the area of the cell's label, times ``OUTLINE``
        where a cell holds more than one label.
    """
    shown = F.one_hot(cells.flatten(1).long(), 1 + 2 * NUM_PARTS).float()
    weights = (shown / shown.sum(dim=1, keepdim=True).clamp_min(1).sqrt()).sum(dim=-1).view_as(cells)
    blocks = label_maps.unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).movedim(3, 2).flatten(3).long()
    mixed = blocks.amin(dim=-1) != blocks.amax(dim=-1)
    weights = weights * torch.where(mixed, OUTLINE, 1.0)
    return weights / weights.mean(dim=(1, 2), keepdim=True)


def noise_dependent(weights: Tensor, noise_share: Tensor) -> Tensor:
    """Weights of cells for polishing: where there is little noise, grounds and fills count as much as outlines.

    Args:
        weights: (B, h, w), see ``cell_weights``.
        noise_share: (B,) share of the variance that is noise, 0 to 1.

    Returns:
        (B, h, w), as given at 1, all 1 at 0, in proportion between.
    """
    return torch.lerp(torch.ones_like(weights), weights, noise_share[:, None, None])
