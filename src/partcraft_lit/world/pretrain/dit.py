"""Text encoder and transformer of the miniature diffusion transformer, trained together on captioned creatures."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, PRXTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from partcraft_lit.backbones.loading import packaged_weights
from partcraft_lit.backbones.mini_dit import MiniDiT, text_mask, training_flow
from partcraft_lit.backbones.prx_model import PrxAttentionCapture, captured_blocks
from partcraft_lit.backbones.sampling import sample
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.visualization import grid, label, save_png, stack, upscale
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.losses.flow import flow_sigmas, flow_target, mix_noise
from partcraft_lit.world.pretrain.denoiser import (
    NOISE_POWER,
    READOUT,
    TEXT_WIDTH,
    build_text_encoder,
    captioned,
    cell_weights,
    told_shapes,
    words_of_parts,
)
from partcraft_lit.world.pretrain.loop import Log, LoopSettings, train_loop
from partcraft_lit.world.pretrain.readout import LookReadout
from partcraft_lit.world.pretrain.recipe import SHEET_CAPTIONS, tidy, use_published_names
from partcraft_lit.world.pretrain.tokenizer import build_tokenizer
from partcraft_lit.world.zoo.looks import FAMILIES, NUM_PARTS
from partcraft_lit.world.zoo.scenes import PretrainingScenes

#: Of training and sampling: what a caption decides is decided where there is much noise.
SHIFT = 2.0
#: Share of the depth behind which looks are read: the blocks after it only draw.
_READ_AT = 0.75
#: Sampling steps of the sample sheet.
_SHEET_STEPS = 25


def build_transformer(latent_channels: int) -> PRXTransformer2DModel:
    """Eight blocks of width 96 on 16 x 16 tokens, one per latent: 1.6 million weights."""
    return PRXTransformer2DModel(
        in_channels=latent_channels,
        patch_size=1,
        context_in_dim=TEXT_WIDTH,
        hidden_size=96,
        mlp_ratio=3.0,
        num_heads=3,
        depth=8,
        axes_dim=[16, 16],
    )


class TextAndTransformer(nn.Module):
    """What trains together."""

    def __init__(self, text_encoder: CLIPTextModel, transformer: PRXTransformer2DModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.transformer = transformer
        self.readout = LookReadout(int(transformer.config.hidden_size))

    def forward(self, noisy_latents: Tensor, sigmas: Tensor, input_ids: Tensor, mask: Tensor) -> Tensor:
        """(B, C, 16, 16), (B,) from 0 to 1, (B, L), (B, L) bool -> (B, C, 16, 16) velocity."""
        velocity: Tensor = self.transformer(
            hidden_states=noisy_latents,
            timestep=sigmas,
            encoder_hidden_states=self.text_encoder(input_ids).last_hidden_state,
            attention_mask=mask,
            return_dict=False,
        )[0]
        return velocity


def train_transformer(
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    scenes: PretrainingScenes,
    settings: LoopSettings,
    folder: Path,
    log: Log,
    grounding_weight: float,
) -> TextAndTransformer:
    """Trains on fresh renders, each seen once, with the losses of ``train_denoiser``; arguments as there."""
    torch.manual_seed(scenes.seed)
    model = TextAndTransformer(build_text_encoder(tokenizer), build_transformer(vae.config.latent_channels))
    flow, device = training_flow(SHIFT), torch.device(settings.device)
    vae.to(device).eval().requires_grad_(False)
    depth = len(model.transformer.blocks)
    layers = [f"blocks.{number}.attention" for number in captured_blocks(depth)]
    capture = PrxAttentionCapture(model.transformer, layers)
    kept: list[Tensor] = []
    read = model.transformer.blocks[int(_READ_AT * depth) - 1].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        batch = settings.batch_size
        indices = range(step * batch, (step + 1) * batch)
        generator = torch_generator(scenes.seed, "transformer", step)
        drawing, captions, ids = captioned(scenes, indices, tokenizer, generator)
        mask = text_mask(ids, tokenizer.eos_token_id)
        longest = int(mask.sum(dim=1).max())  # nobody looks at what follows: an eighth of the work
        ids, mask = ids[:, :longest].to(device), mask[:, :longest].to(device)
        latents = _encode(vae, to_unit(drawing.images).to(device))
        noise = torch.randn(latents.shape, generator=generator).to(device)
        sigmas = flow_sigmas(flow, (batch,), generator).to(device)
        families = [scenes.families(index) for index in indices]
        places, parts = (tensor.to(device) for tensor in words_of_parts(families, captions))
        kept.clear()
        with capture.armed(places):
            predicted = model(mix_noise(latents, noise, sigmas), sigmas, ids, mask)
        label_maps = drawing.label_maps.to(device)
        cells = label_maps[:, 2::4, 2::4]  # the middle of each cell of 4 x 4 pixels
        grounding = entropy_attention_loss(capture.maps(), parts, cells, 2 * NUM_PARTS).mean()
        capture.clear()
        kinds = [[list(FAMILIES.values()).index(one) for one in (shown[0], shown[-1])] for shown in families]
        features = kept.pop().transpose(1, 2).unflatten(2, tuple(latents.shape[-2:]))
        looks, told = scenes.looks(indices).to(device), told_shapes(families, captions).to(device)
        read_out = model.readout(features, cells, looks, torch.tensor(kinds, device=device), told)
        readout = {name: (value * _noise_share(sigmas) ** NOISE_POWER[name]).mean() for name, value in read_out.items()}
        error = (predicted.float() - flow_target(latents, noise)).square().mean(dim=1)
        parts_of_loss = {
            "diffusion": (error * cell_weights(label_maps, cells)).mean(),
            "grounding": grounding,
            **readout,
        }
        numbers = {name: float(value.detach()) for name, value in parts_of_loss.items()}
        readout_loss = sum(READOUT[name] * value for name, value in readout.items())
        return parts_of_loss["diffusion"] + grounding_weight * grounding + readout_loss, numbers

    transformer = model.transformer
    ends = (transformer.img_in, transformer.txt_in, transformer.time_in, transformer.final_layer, model.readout)
    averaged = train_loop(model, loss, settings, folder / "transformer.pt", log, ends)
    capture.remove()
    read.remove()
    assert isinstance(averaged, TextAndTransformer)
    return averaged


def pretrain_transformer(
    seed: int, settings: LoopSettings, work: Path, output: Path, log: Log, grounding_weight: float
) -> dict[str, float]:
    """Trains text encoder and transformer on the packaged miniature's latents, and writes the folder.

    Args:
        seed: of the images.
        settings: how long and how fast.
        work: checkpoint, curve and the sample sheet.
        output: folder in diffusers' format.
        log: where a line for people goes.
        grounding_weight: see ``train_denoiser``.

    Returns:
        What ``pretraining.json`` in ``output`` holds.
    """
    vae = AutoencoderKL.from_pretrained(str(packaged_weights("mini")), subfolder="vae").float()
    tokenizer = build_tokenizer()
    model = train_transformer(vae, tokenizer, PretrainingScenes(seed + 1), settings, work, log, grounding_weight)
    return package_transformer(vae, model, tokenizer, output, work, log)


def package_transformer(
    vae: AutoencoderKL, model: TextAndTransformer, tokenizer: CLIPTokenizer, output: Path, work: Path, log: Log
) -> dict[str, float]:
    """Writes the folder in half precision, and the sample sheet."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    networks = {"transformer": model.transformer, "vae": vae, "text_encoder": model.text_encoder}
    backbone = MiniDiT(
        name="mini_dit",
        transformer=model.transformer.float().cpu().eval(),
        vae=vae.float().cpu(),
        text_encoder=model.text_encoder.float().cpu(),
        tokenizer=tokenizer,
        scheduler=scheduler,
        resolution=64,
    )
    save_png(work / "samples.png", _sample_sheet(backbone), {"captions": json.dumps(SHEET_CAPTIONS)})
    vae.register_to_config(shift_factor=0.0)  # diffusers' pipeline wants a number
    for name, network in networks.items():
        network.half().save_pretrained(output / name, safe_serialization=True)
    for config in output.glob("*/config.json"):
        tidy(config)
    use_published_names(output / "text_encoder" / "model.safetensors")
    tokenizer.save_pretrained(output / "tokenizer")
    scheduler.save_pretrained(output / "scheduler")
    index = {
        "_class_name": "PRXPipeline",
        "transformer": ["diffusers", "PRXTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    }
    atomic_write(output / "model_index.json", json.dumps(index, indent=1) + "\n")
    numbers = {"parameters": float(sum(p.numel() for network in networks.values() for p in network.parameters()))}
    atomic_write(output / "pretraining.json", json.dumps(numbers, indent=1) + "\n")
    log(f"{output}: {numbers['parameters']:.4g} parameters")
    return numbers


def _sample_sheet(backbone: MiniDiT, per_caption: int = 6) -> Tensor:
    """(3, H, W) uint8: a row of images for each caption."""
    rows = []
    for row, text in enumerate(SHEET_CAPTIONS):
        seeds = [100 * row + column for column in range(per_caption)]
        tokens = backbone.plain_tokens([text])
        images = sample(
            backbone,
            tokens,
            None,
            seeds=seeds,
            prompt_of=[0] * per_caption,
            steps=_SHEET_STEPS,
            guidance_scale=5.0,
            scheduler="flow_euler",
        )
        cells = [upscale(image, 128) for image in images]
        rows.append(label(grid(cells, columns=per_caption, pad=4), text, "above", 11))
    return stack(rows, pad=4, border=4)


def _noise_share(sigmas: Tensor) -> Tensor:
    """Share of the variance of noisy latents that is noise, as 1 - alphas_cumprod of diffusion."""
    return sigmas.square() / (sigmas.square() + (1 - sigmas).square())


@torch.no_grad()
def _encode(vae: AutoencoderKL, pixel_values: Tensor) -> Tensor:
    """The mean latents in the backbone's scale; this VAE has no shift."""
    with torch.autocast(pixel_values.device.type, torch.bfloat16):
        mean = vae.encode(pixel_values).latent_dist.mean
    return mean.float() * vae.config.scaling_factor
