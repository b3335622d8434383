"""The recipe of the miniature Stable Diffusion, from scratch to a folder in diffusers' format."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor
from transformers import CLIPTokenizer

from partcraft_lit.backbones.sampling import guidance_rescale
from partcraft_lit.core.files import atomic_write
from partcraft_lit.core.images import to_unit
from partcraft_lit.core.visualization import grid, label, save_png, stack, upscale
from partcraft_lit.world.pretrain.autoencoder import train_autoencoder
from partcraft_lit.world.pretrain.denoiser import TextAndDenoiser, build_denoiser, build_scheduler, train_denoiser
from partcraft_lit.world.pretrain.loop import Log, LoopSettings
from partcraft_lit.world.pretrain.pool import PoolSettings, example_source
from partcraft_lit.world.pretrain.tokenizer import build_tokenizer
from partcraft_lit.world.zoo.scenes import PretrainingScenes

#: Images on which the autoencoder's quality is measured; far beyond what training draws.
_HELD_BACK = range(2 * 10**9, 2 * 10**9 + 256)
#: Captions of the sample sheet.
SHEET_CAPTIONS: tuple[str, ...] = (
    "a photo of a bird",
    "a photo of a beast",
    "a photo of a toucan",
    "a photo of a bird with red head, blue body, yellow wing, green tail and orange legs",
    "a photo of a bird with white striped head, purple body, pink spotted wing, teal tail and yellow legs",
    "a photo of a bird with blue crested head, white spotted body, red raised wing, purple fanned tail and brown legs",
    "a photo of a bird with owl head, robin body, parrot wing, crane tail and heron legs",
    "a photo of a beast with red ears, yellow muzzle, blue striped body, green legs and white tail",
    "a photo of a bird with red head and yellow body and a beast with blue body",
)


def pretrain(
    seed: int,
    autoencoder: LoopSettings,
    denoiser: LoopSettings,
    polish: LoopSettings,
    work: Path,
    pool: PoolSettings,
    output: Path,
    log: Log,
    grounding_weight: float,
) -> dict[str, float]:
    """Trains autoencoder, then text encoder and UNet, and writes the folder; a stopped run goes on where it was.

    Args:
        seed: of the images; the denoiser sees others than the autoencoder.
        autoencoder: how long and how fast the first stage trains.
        denoiser: likewise the second.
        polish: likewise the third, in which cells count alike where there is little noise.
        work: checkpoints, curves and the sample sheet.
        pool: where the denoiser's images come from.
        output: folder in diffusers' format.
        log: where a line for people goes.
        grounding_weight: see ``train_denoiser``.

    Returns:
        Measured quality, as in ``pretraining.json`` in ``output``.
    """
    vae_folder = work / "vae"
    if (vae_folder / "config.json").exists():
        vae = AutoencoderKL.from_pretrained(vae_folder)
        log(f"autoencoder taken from {vae_folder}")
    else:
        vae = train_autoencoder(PretrainingScenes(seed), autoencoder, work, log)
        vae.save_pretrained(vae_folder)
    device = torch.device(denoiser.device)
    vae.to(device).eval().requires_grad_(False)
    tokenizer, scenes = build_tokenizer(), PretrainingScenes(seed + 1)
    source = example_source(pool, scenes, tokenizer, vae, device, work, log)
    model = build_denoiser(tokenizer, vae.config.latent_channels, scenes.seed)
    train = partial(train_denoiser, source, scenes.seed, log=log, grounding_weight=grounding_weight)
    model = train(model, denoiser, work / "denoiser.pt")
    model = train(model.requires_grad_(True), polish, work / "polish.pt", polished_from=denoiser.steps)
    return package(vae, model, tokenizer, seed, output, work, log)


def package(
    vae: AutoencoderKL, model: TextAndDenoiser, tokenizer: CLIPTokenizer, seed: int, output: Path, work: Path, log: Log
) -> dict[str, float]:
    """Writes the folder in half precision, and the sample sheet; returns the measured quality."""
    pipeline = as_pipeline(vae, model, tokenizer)
    numbers = {"psnr_db": round_trip_psnr(vae, seed), "parameters": float(count_parameters(pipeline))}
    save_png(work / "samples.png", sample_sheet(pipeline), {"captions": json.dumps(SHEET_CAPTIONS)})
    pipeline.to(dtype=torch.float16).save_pretrained(output, safe_serialization=True)
    for config in output.glob("*/config.json"):
        tidy(config)
    use_published_names(output / "text_encoder" / "model.safetensors")
    atomic_write(output / "pretraining.json", json.dumps(numbers, indent=1) + "\n")
    log(f"{output}: " + ", ".join(f"{key} {value:.4g}" for key, value in numbers.items()))
    return numbers


def use_published_names(path: Path) -> None:
    """Gives a text encoder's tensors the names of the published checkpoints, which every tool and version reads.

    transformers 5.6 dropped the level ``text_model`` from the names that it writes, and still reads it.
    """
    tensors = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in load_file(path).items()}
    atomic_write(path, to_safetensors(tensors, {"format": "pt"}))


def tidy(config: Path) -> None:
    """Takes out where a network was loaded from, and names float32 where a type is named.

    Transformers loads a model in the type that its config names, diffusers in float32: both must be one.
    """
    values = json.loads(config.read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    if "dtype" in values:
        values["dtype"] = "float32"
    atomic_write(config, json.dumps(values, indent=2) + "\n")


def as_pipeline(vae: AutoencoderKL, model: TextAndDenoiser, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The parts as diffusers' own pipeline, without a safety checker: it draws cartoon animals."""
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def round_trip_psnr(vae: AutoencoderKL, seed: int) -> float:
    """Peak signal-to-noise ratio, in dB, of unseen images that went through the autoencoder."""
    drawing, _ = PretrainingScenes(seed).batch(_HELD_BACK)
    pixels = to_unit(drawing.images)
    vae = vae.float().cpu().eval()
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return -10 * math.log10(float((decoded - pixels).square().mean()) / 4)


@torch.no_grad()
def sample_sheet(pipeline: StableDiffusionPipeline, per_caption: int = 6, steps: int = 25) -> Tensor:
    """(3, H, W) uint8: a row of images for each caption."""
    pipeline = pipeline.to("cpu", torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    rows = []
    for row, text in enumerate(SHEET_CAPTIONS):
        generators = [torch.Generator().manual_seed(100 * row + column) for column in range(per_caption)]
        images = pipeline(
            [text] * per_caption,
            num_inference_steps=steps,
            guidance_scale=4.0,
            guidance_rescale=guidance_rescale(pipeline.scheduler),
            generator=generators,
            output_type="pt",
        ).images
        cells = [upscale(image, 128) for image in (images * 255).round().to(torch.uint8)]
        rows.append(label(grid(cells, columns=per_caption, pad=4), text, "above", 11))
    pipeline.scheduler = build_scheduler()
    return stack(rows, pad=4, border=4)


def count_parameters(pipeline: StableDiffusionPipeline) -> int:
    """Of all networks together."""
    networks = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    return sum(parameter.numel() for network in networks for parameter in network.parameters())
