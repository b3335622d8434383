"""Text encoder and UNet of the miniature Stable Diffusion, trained together on captioned creatures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from partcraft_lit.backbones.attention import AttentionCapture, cross_attention_sides
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.losses.diffusion import diffusion_target
from partcraft_lit.world.pretrain.loop import Log, LoopSettings, train_loop
from partcraft_lit.world.pretrain.readout import Features, LookReadout
from partcraft_lit.world.zoo.captions import AND_A, parts_of_words, tells_shapes
from partcraft_lit.world.zoo.draw import Drawing
from partcraft_lit.world.zoo.looks import FAMILIES, NUM_PARTS, Family
from partcraft_lit.world.zoo.scenes import PretrainingScenes

#: Share of captions left empty, for classifier-free guidance.
EMPTY_CAPTIONS = 0.1
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
    """Stable Diffusion's noise schedule, with v-prediction."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
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
        self.readout = LookReadout(int(unet.config.block_out_channels[0]))

    def forward(self, noisy_latents: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:
        """(B, C, 16, 16), (B,), (B, 77) -> (B, C, 16, 16)."""
        hidden = self.text_encoder(input_ids).last_hidden_state
        return self.unet(noisy_latents, timesteps, encoder_hidden_states=hidden).sample


@dataclass(frozen=True)
class WarmStart:
    """A trained model to polish, and how many steps of the same batch size it was trained for."""

    model: TextAndDenoiser
    steps: int


def train_denoiser(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    scenes: PretrainingScenes,
    settings: LoopSettings,
    folder: Path,
    log: Log,
    grounding_weight: float,
    warm_start: WarmStart | None = None,
) -> TextAndDenoiser:
    """Trains on fresh renders, each seen once: v-prediction, a tenth of the captions empty.

    Args:
        vae: its latents.
        tokenizer: of the captions.
        scenes: images and captions by index.
        settings: how long and how fast.
        folder: of checkpoint and curve.
        log: where a line for people goes.
        grounding_weight: of the loss by which the words that describe a part look at that part. Their parts are known
            here, and a base that has to find this out by itself follows captions later.
        warm_start: polishes this model, in place, on the images after those that it was trained on.
    """
    torch.manual_seed(scenes.seed)
    if warm_start is None:
        warm_start_steps = 0
        model = TextAndDenoiser(build_text_encoder(tokenizer), build_unet(vae.config.latent_channels))
    else:
        warm_start_steps = warm_start.steps
        model = warm_start.model.requires_grad_(True)
    scheduler = build_scheduler()
    device = torch.device(settings.device)
    vae.to(device).eval().requires_grad_(False)
    alphas_cumprod = scheduler.alphas_cumprod.to(device)
    latent_size = int(model.unet.config.sample_size)
    layers = [name for name, side in cross_attention_sides(model.unet, latent_size).items() if side == latent_size]
    capture, features = AttentionCapture(model.unet, layers), Features(model.unet)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = settings.batch_size
        step += warm_start_steps
        indices = range(step * batch, (step + 1) * batch)
        generator = torch_generator(scenes.seed, "denoiser", step)
        drawing, captions, ids = captioned(scenes, indices, tokenizer, generator)
        ids = ids.to(device)
        latents = _encode(vae, to_unit(drawing.images).to(device))
        noise = torch.randn(latents.shape, generator=generator).to(device)
        # one draw from each of ``batch`` equal slices: less noise in the gradient at no cost
        slices = (torch.arange(batch) + torch.rand(batch, generator=generator)) / batch
        timesteps = (slices**TILT * len(alphas_cumprod)).long().clamp_max(len(alphas_cumprod) - 1).to(device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        families = [scenes.families(index) for index in indices]
        places, parts = (tensor.to(device) for tensor in words_of_parts(families, captions))
        with capture.armed(places):
            predicted = model(noisy, timesteps, ids).float()
        label_maps = drawing.label_maps.to(device)
        cells = label_maps[:, 2::4, 2::4]  # the middle of each cell of 4 x 4 pixels
        grounding = entropy_attention_loss(capture.maps(), parts, cells, 2 * NUM_PARTS).mean()
        capture.clear()
        kinds = [[list(FAMILIES.values()).index(one) for one in (shown[0], shown[-1])] for shown in families]
        looks = scenes.looks(indices).to(device)
        told = told_shapes(families, captions).to(device)
        noise_share = 1 - alphas_cumprod[timesteps]
        readout = {
            name: (value * noise_share ** NOISE_POWER[name]).mean()
            for name, value in model.readout(
                features.take(), cells, looks, torch.tensor(kinds, device=device), told
            ).items()
        }
        target = diffusion_target(latents, noise, timesteps, alphas_cumprod, "v_prediction")
        weights = cell_weights(label_maps, cells)
        if warm_start is not None:
            weights = noise_dependent(weights, noise_share)
        diffusion = ((predicted - target).square().mean(dim=1) * weights).mean()
        parts_of_loss = {"diffusion": diffusion, "grounding": grounding, **readout}
        numbers = {name: float(value.detach()) for name, value in parts_of_loss.items()}
        readout_loss = sum(READOUT[name] * value for name, value in readout.items())
        return diffusion + grounding_weight * grounding + readout_loss, numbers

    ends = (model.unet.conv_in, model.unet.conv_out, model.readout)
    averaged = train_loop(model, loss, settings, folder / ("polish.pt" if warm_start else "denoiser.pt"), log, ends)
    capture.remove()
    features.remove()
    assert isinstance(averaged, TextAndDenoiser)
    return averaged


def captioned(
    scenes: PretrainingScenes, indices: range, tokenizer: CLIPTokenizer, generator: torch.Generator
) -> tuple[Drawing, list[str], Tensor]:
    """Drawings, their captions, ``EMPTY_CAPTIONS`` of them empty, and the (B, 77) ids of these."""
    drawing, captions = scenes.batch(indices)
    empty = torch.rand(len(indices), generator=generator) < EMPTY_CAPTIONS
    captions = ["" if blank else text for text, blank in zip(captions, empty.tolist(), strict=True)]
    return drawing, captions, tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids


def words_of_parts(families: Sequence[tuple[Family, ...]], captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Places of the words that describe parts, and the label of the part that each describes.

    Args:
        families: of the creatures in each image, one or two.
        captions: of each image.

    Returns:
        Two (B, T) tensors, -1 where a caption has fewer than T such words.
    """
    rows = []
    for shown, text in zip(families, captions, strict=True):
        spoken = [
            label
            for creature, (family, half) in enumerate(zip(shown, text.split(AND_A), strict=False))
            for label in [*([None, None] if creature else []), *_labels(family, half, creature * NUM_PARTS)]
        ]  # the two empty words are those of AND_A
        # the first place is the start of the text
        rows.append([(place + 1, label) for place, label in enumerate(spoken) if label is not None])
    most = max(1, max(map(len, rows)))
    padded = torch.tensor([row + [(-1, -1)] * (most - len(row)) for row in rows])
    return padded[..., 0], padded[..., 1]


def told_shapes(families: Sequence[tuple[Family, ...]], captions: Sequence[str]) -> Tensor:
    """(B, 2 * parts) bool: whether the caption says the shape of each part of the one or two creatures."""
    told = torch.zeros(len(captions), 2 * NUM_PARTS, dtype=torch.bool)
    for row, (shown, text) in enumerate(zip(families, captions, strict=True)):
        for creature, (family, half) in enumerate(zip(shown, text.split(AND_A), strict=False)):
            told[row, creature * NUM_PARTS : (creature + 1) * NUM_PARTS] = torch.tensor(tells_shapes(family, half))
    return told


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


def _labels(family: Family, text: str, offset: int) -> list[int | None]:
    return [None if part is None else part + 1 + offset for part in parts_of_words(family, text)]


@torch.no_grad()
def _encode(vae: AutoencoderKL, pixel_values: Tensor) -> Tensor:
    with torch.autocast(pixel_values.device.type, torch.bfloat16):
        mean = vae.encode(pixel_values).latent_dist.mean
    return mean.float() * vae.config.scaling_factor
