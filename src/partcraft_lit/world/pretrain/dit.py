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
from partcraft_lit.core.randomness import torch_generator
from partcraft_lit.core.visualization import grid, label, save_png, stack, upscale
from partcraft_lit.losses.attention import entropy_attention_loss
from partcraft_lit.losses.flow import flow_sigmas, flow_target, mix_noise
from partcraft_lit.world.pretrain.denoiser import (
    NOISE_POWER,
    READOUT,
    TEXT_WIDTH,
    build_text_encoder,
    cell_weights,
)
from partcraft_lit.world.pretrain.examples import ExampleSource, noise_like
from partcraft_lit.world.pretrain.loop import Log, LoopSettings, train_loop
from partcraft_lit.world.pretrain.pool import PoolSettings, example_source
from partcraft_lit.world.pretrain.readout import LookReadout
from partcraft_lit.world.pretrain.recipe import SHEET_CAPTIONS, tidy, use_published_names
from partcraft_lit.world.pretrain.tokenizer import build_tokenizer
from partcraft_lit.world.zoo.looks import NUM_PARTS
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
    source: ExampleSource,
    seed: int,
    model: TextAndTransformer,
    end_of_text: int,
    settings: LoopSettings,
    checkpoint: Path,
    log: Log,
    grounding_weight: float,
) -> TextAndTransformer:
    """Trains text encoder and transformer with the losses of ``train_denoiser``.

    Args:
        source, seed, model, settings, checkpoint, log, grounding_weight: as there.
        end_of_text: id of the token that ends a caption.
    """
    flow, device = training_flow(SHIFT), torch.device(settings.device)
    depth = len(model.transformer.blocks)
    layers = [f"blocks.{number}.attention" for number in captured_blocks(depth)]
    capture = PrxAttentionCapture(model.transformer, layers)
    kept: list[Tensor] = []
    read = model.transformer.blocks[int(_READ_AT * depth) - 1].register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )

    def loss(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        generator = torch_generator(seed, "transformer", step)
        examples = source.batch(step, settings.batch_size, generator)
        latents, truth = examples.latents, examples.truth
        ids = truth.input_ids[:, : examples.longest]  # nobody looks at what follows: an eighth of the work
        noise = noise_like(latents, generator)
        sigmas = flow_sigmas(flow, (settings.batch_size,), generator).to(device)
        kept.clear()
        with capture.armed(truth.places):
            predicted = model(mix_noise(latents, noise, sigmas), sigmas, ids, text_mask(ids, end_of_text))
        cells = truth.label_maps[:, 2::4, 2::4]  # the middle of each cell of 4 x 4 pixels
        grounding = entropy_attention_loss(capture.maps(), truth.parts, cells, 2 * NUM_PARTS).mean()
        capture.clear()
        features = kept.pop().transpose(1, 2).unflatten(2, tuple(latents.shape[-2:]))
        read_out = model.readout(features, cells, truth.looks, truth.families, truth.told)
        readout = {name: (value * _noise_share(sigmas) ** NOISE_POWER[name]).mean() for name, value in read_out.items()}
        error = (predicted.float() - flow_target(latents, noise)).square().mean(dim=1)
        diffusion = (error * cell_weights(truth.label_maps, cells)).mean()
        parts_of_loss = {"diffusion": diffusion, "grounding": grounding, **readout}
        numbers = {name: value.detach() for name, value in parts_of_loss.items()}
        readout_loss = sum(READOUT[name] * value for name, value in readout.items())
        return diffusion + grounding_weight * grounding + readout_loss, numbers

    transformer = model.transformer
    ends = (transformer.img_in, transformer.txt_in, transformer.time_in, transformer.final_layer, model.readout)
    averaged = train_loop(model, loss, settings, checkpoint, log, ends)
    capture.remove()
    read.remove()
    assert isinstance(averaged, TextAndTransformer)
    return averaged


def pretrain_transformer(
    seed: int,
    settings: LoopSettings,
    pool: PoolSettings,
    work: Path,
    output: Path,
    log: Log,
    grounding_weight: float,
) -> dict[str, float]:
    """Trains text encoder and transformer on the packaged miniature's latents, and writes the folder.

    Args:
        seed: of the images.
        settings: how long and how fast.
        pool: where the images come from.
        work: checkpoint, curve and the sample sheet.
        output: folder in diffusers' format.
        log: where a line for people goes.
        grounding_weight: see ``train_denoiser``.

    Returns:
        What ``pretraining.json`` in ``output`` holds.
    """
    vae = AutoencoderKL.from_pretrained(str(packaged_weights("mini")), subfolder="vae").float()
    tokenizer, scenes = build_tokenizer(), PretrainingScenes(seed + 1)
    device = torch.device(settings.device)
    vae.to(device).eval().requires_grad_(False)
    source = example_source(pool, scenes, tokenizer, vae, device, work, log)
    torch.manual_seed(scenes.seed)
    model = TextAndTransformer(build_text_encoder(tokenizer), build_transformer(vae.config.latent_channels))
    end, checkpoint = int(tokenizer.eos_token_id), work / "transformer.pt"
    model = train_transformer(source, scenes.seed, model, end, settings, checkpoint, log, grounding_weight)
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
            guidance_scale=4.0,
            scheduler="flow_euler",
        )
        cells = [upscale(image, 128) for image in images]
        rows.append(label(grid(cells, columns=per_caption, pad=4), text, "above", 11))
    return stack(rows, pad=4, border=4)


def _noise_share(sigmas: Tensor) -> Tensor:
    """Share of the variance of noisy latents that is noise, as 1 - alphas_cumprod of diffusion."""
    return sigmas.square() / (sigmas.square() + (1 - sigmas).square())
